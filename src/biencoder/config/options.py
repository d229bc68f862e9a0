"""One declaration an option: a dataclass field with help, bounds and choices, read by the command line and by YAML.

An option is a field annotated with its type and an `Option`::

    batch_size: Annotated[int, Option("queries per optimizer step", LOSS, least=1)] = 64

The field's default is the option's default, and a field without one must be given. Standard library only (PyYAML is
imported when a file is written), so that ``biencoder --help`` is instant.
"""

import dataclasses
import operator
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from biencoder.config.values import as_type, nearest, shown
from biencoder.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What one field means to a person.

    Attributes:
        help: one sentence with the unit; `help_text` appends the default.
        group: the heading that it stands under in ``--help``.
        unset: what happens when you leave out an optional value, in words.
        metavar: the word for the value in ``--help``; if empty, the type decides.
        choices: the only texts allowed; if empty, any text is.
        least: smallest allowed number.
        above: the number must be larger than this.
        most: largest allowed number.
        below: the number must be smaller than this.
        convert: used instead of the conversion by type; it gets what was typed and raises `UserError`.
        positional: the values (more than one) stand after the command's name, without a flag.
    """

    help: str
    group: str
    unset: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    convert: Callable[[Any], Any] | None = None
    positional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the commands' configurations: making one converts and checks every value.

    Raises:
        UserError: a value cannot be used; the message names the flag, the value and the bound.
    """

    has_flags: ClassVar[bool] = True  # if False, its fields are YAML keys only, and messages call them by their keys

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, self.convert(field, getattr(self, field.name)))
        self.check()

    @classmethod
    def convert(cls, field: "dataclasses.Field[Any]", value: Any) -> Any:
        """The value of a field, see :func:`convert`."""
        return convert(field, value, typed_name(field) if cls.has_flags else key_name(field.name))

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Hook for a value that follows from another one; gets what was typed and read."""
        return values

    def check(self) -> None:
        """Hook for rules about several options at once; raises `UserError`."""

    def to_dict(self) -> dict[str, Any]:
        """Field name -> plain value (paths as text, tuples as lists), in the order of declaration."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def to_yaml(self) -> str:
        """The configuration as YAML with the flags' names as keys; `read_yaml` reads it back to an equal one."""
        return _as_yaml(self.to_dict())

    def to_shared_yaml(self) -> str:
        """The same with the last part of each path alone, for files that leave this machine."""
        return _as_yaml(
            {
                field.name: _shared(getattr(self, field.name), is_model=details(field).metavar == "MODEL")
                for field in dataclasses.fields(self)
            }
        )


def build(kind: type[Config], values: dict[str, Any]) -> Config:
    """A configuration from what was typed and read.

    Raises:
        UserError: a required value is missing, or a value cannot be used.
    """
    values = kind.completed(values)
    missing = [typed_name(field) for field in needed(kind) if field.name not in values]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given")
    return kind(**values)


def needed(kind: type[Config]) -> "list[dataclasses.Field[Any]]":
    """The fields that have no default."""
    return [field for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


def in_reading_order(kind: type[Config]) -> "list[dataclasses.Field[Any]]":
    """All fields, those that have no default first."""
    return sorted(dataclasses.fields(kind), key=lambda field: field.default is not dataclasses.MISSING)


def flag_name(name: str) -> str:
    """``batch_size`` -> ``--batch-size``."""
    return "--" + key_name(name)


def key_name(name: str) -> str:
    """``batch_size`` -> ``batch-size``."""
    return name.replace("_", "-")


def typed_name(field: "dataclasses.Field[Any]") -> str:
    """What a person types for the field: its flag, or the word that stands for values without a flag."""
    declared = details(field)
    return declared.metavar if declared.positional else flag_name(field.name)


def details(field: "dataclasses.Field[Any]") -> Option:
    """The `Option` in the field's annotation."""
    _, declared = typing.get_args(field.type)
    option: Option = declared
    return option


def shape(field: "dataclasses.Field[Any]") -> tuple[type, bool, bool]:
    """The field's base type (the first, if `convert` reads several), whether it may be None, whether it is a tuple."""
    annotation, _ = typing.get_args(field.type)
    optional = False
    if isinstance(annotation, types.UnionType):
        optional = types.NoneType in typing.get_args(annotation)
        annotation, *_ = (part for part in typing.get_args(annotation) if part is not types.NoneType)
    many = typing.get_origin(annotation) is tuple
    base = typing.get_args(annotation)[0] if many else annotation
    return (typing.get_args(base)[0] if isinstance(base, types.UnionType) else base), optional, many


def record_of(field: "dataclasses.Field[Any]") -> type[Config] | None:
    """The `Config` that may stand in the field's tuple beside its base type, as ``DataSet`` in ``Path | DataSet``."""
    annotation, _ = typing.get_args(field.type)
    for item in typing.get_args(annotation):
        if isinstance(item, types.UnionType):
            record: type[Config] = next(part for part in typing.get_args(item) if issubclass(part, Config))
            return record
    return None


def help_text(field: "dataclasses.Field[Any]") -> str:
    """The sentence of ``--help``, with the default."""
    declared = details(field)
    if field.default is dataclasses.MISSING:
        return declared.help
    if field.default is None:
        return f"{declared.help} (default: {declared.unset})"
    default = {True: "on", False: "off"}.get(field.default, field.default) if shape(field)[0] is bool else field.default
    return f"{declared.help} (default: {default})"


def convert(field: "dataclasses.Field[Any]", value: Any, flag: str) -> Any:
    """``value``, as typed, as read from YAML or as given in Python, as the field's type.

    Args:
        field: of a `Config`.
        value: what to convert.
        flag: what messages call the field.

    Raises:
        UserError: the value is missing, is not of that type, is out of bounds or is not one of the choices.
    """
    declared, record = details(field), record_of(field)
    base, optional, many = shape(field)
    if value is None:
        if optional:
            return None
        raise UserError(f"{flag} is missing a value")
    if declared.convert:
        try:
            return declared.convert(value)
        except UserError as error:
            raise UserError(f"{flag}: {error}") from None
    if many:
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not values:
            raise UserError(f"{flag} is missing a value")
        return tuple(
            item if record and isinstance(item, record) else _convert_one(flag, declared, base, item) for item in values
        )
    return _convert_one(flag, declared, base, value)


def _convert_one(flag: str, declared: Option, base: type, value: Any) -> Any:
    converted = as_type(base, value, flag)
    if declared.choices and converted not in declared.choices:
        raise UserError(
            f"{flag} must be one of {', '.join(declared.choices)}, not {shown(value)!r}"
            f"{nearest(converted, declared.choices)}"
        )
    for bound, fits, words in (
        (declared.least, operator.ge, "at least"),
        (declared.above, operator.gt, "more than"),
        (declared.most, operator.le, "at most"),
        (declared.below, operator.lt, "less than"),
    ):
        if bound is not None and not fits(converted, bound):
            raise UserError(f"{flag} must be {words} {bound:g}, not {converted}")
    return converted


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Config):
        return {name: item for name, item in value.to_dict().items() if item is not None}
    return str(value) if isinstance(value, Path) else value


def shared_name(place: "str | Path") -> str:
    """The last part of a path, which says nothing else of this machine; an address, as ``hf:me/data``, stays whole."""
    is_address = re.match(r"[a-z]{2,}:", str(place)) is not None
    return str(place) if is_address else Path(place).name


def _shared(value: Any, *, is_model: bool) -> Any:
    if isinstance(value, tuple):
        return [_shared(item, is_model=is_model) for item in value]
    if isinstance(value, Config):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _shared(item, is_model=False) for name, item in fields.items() if item is not None}
    if isinstance(value, str) and not (is_model and Path(value).exists()):  # a model's name on the Hub stays whole
        return value
    return shared_name(value) if isinstance(value, str | Path) else _plain(value)


def _as_yaml(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(_dashed(values), sort_keys=False, allow_unicode=True)


def _dashed(value: Any) -> Any:
    """Plain values with the keys of mappings as YAML has them."""
    if isinstance(value, dict):
        return {key_name(name): _dashed(item) for name, item in value.items()}
    return [_dashed(item) for item in value] if isinstance(value, list) else value
