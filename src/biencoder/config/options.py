"""One declaration an option: a dataclass field with help, bounds and choices, read by the command line and by YAML.

Standard library only (PyYAML is imported when a file is read or written), so that ``biencoder --help`` is instant.
"""

import dataclasses
import difflib
import math
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from biencoder.config.yaml_file import YamlFile
from biencoder.errors import UserError

LONGEST_SHOWN = 200  # characters of a value in a message

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(I?)(B?)\s*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What one field means to a person.

    Attributes:
        help: one sentence with the unit; the default is appended by `help_text`.
        group: the heading it stands under in ``--help``.
        unset: what happens when an optional value is left out, in words.
        metavar: what stands for the value in ``--help``; by default from the type.
        choices: the only texts allowed, when there are any.
        least: smallest allowed number.
        above: the number must be larger than this.
        most: largest allowed number.
        below: the number must be smaller than this.
        convert: replaces the conversion by type; gets what was typed and raises `UserError`.
        positional: several values that stand without a flag, after the command's name.
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


def option(help: str, *, group: str, default: Any = dataclasses.MISSING, **details: Any) -> Any:
    """A dataclass field that is also a flag and a YAML key; the arguments are those of `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, group, **details)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the commands' configurations: every value is converted and checked when one is made.

    Raises:
        UserError: a value that cannot be used; the message names the flag, the value and the bound.
    """

    has_flags: ClassVar[bool] = True  # else its fields are keys alone, and messages name them so

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, self.convert(field, getattr(self, field.name)))
        self.check()

    @classmethod
    def convert(cls, field: "dataclasses.Field[Any]", value: Any) -> Any:
        """The value of a field, see :func:`convert`."""
        return convert(field, value, typed_name(field) if cls.has_flags else key_name(field.name))

    def check(self) -> None:
        """Hook for what concerns several options at once; raises `UserError`."""

    def to_dict(self) -> dict[str, Any]:
        """Field name -> plain value (paths as text, tuples as lists), in the order of declaration."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def to_yaml(self) -> str:
        """The configuration as YAML with the flags' names as keys; `read_yaml` reads it back to an equal one."""
        import yaml

        return yaml.safe_dump(_dashed(self.to_dict()), sort_keys=False, allow_unicode=True)


def build(kind: type[Config], values: dict[str, Any]) -> Config:
    """A configuration from what was typed and read.

    Raises:
        UserError: a needed value is missing, or one cannot be used.
    """
    missing = [typed_name(field) for field in needed(kind) if field.name not in values]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given")
    return kind(**values)


def needed(kind: type[Config]) -> "list[dataclasses.Field[Any]]":
    """The fields that have no default."""
    return [field for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


def flag_name(name: str) -> str:
    """``batch_size`` -> ``--batch-size``."""
    return "--" + key_name(name)


def key_name(name: str) -> str:
    """``batch_size`` -> ``batch-size``."""
    return name.replace("_", "-")


def typed_name(field: "dataclasses.Field[Any]") -> str:
    """What a person types for the field: its flag, or the word that stands for values without one."""
    declared = details(field)
    return declared.metavar if declared.positional else flag_name(field.name)


def details(field: "dataclasses.Field[Any]") -> Option:
    """The `Option` that the field was declared with."""
    declared: Option = field.metadata["option"]
    return declared


def shape(field: "dataclasses.Field[Any]") -> tuple[type, bool, bool]:
    """The field's base type, whether it may be None, and whether it is a tuple of them."""
    annotation: Any = field.type
    optional = isinstance(annotation, types.UnionType)
    if optional:
        (annotation,) = (part for part in annotation.__args__ if part is not types.NoneType)
    many = typing.get_origin(annotation) is tuple
    base = annotation.__args__[0] if many else annotation
    return (base.__args__[0] if isinstance(base, types.UnionType) else base), optional, many


def record_of(field: "dataclasses.Field[Any]") -> type[Config] | None:
    """The `Config` that may stand in the field's tuple beside its base type, as ``DataSet`` in ``Path | DataSet``."""
    for item in getattr(field.type, "__args__", ()):
        if isinstance(item, types.UnionType):
            record: type[Config] = next(part for part in item.__args__ if issubclass(part, Config))
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
        value: what is converted.
        flag: what messages call the field.

    Raises:
        UserError: it is not of that type, is out of bounds or is none of the choices.
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
    try:
        converted = _AS_TYPE[base](value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{flag} must be {_TYPE_NAMES[base]}, not {_shown(value)!r}") from None
    if declared.choices and converted not in declared.choices:
        raise UserError(
            f"{flag} must be one of {', '.join(declared.choices)}, not {_shown(value)!r}"
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


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise TypeError
    return float(value)  # PyYAML reads 5e-5 as text, for YAML 1.1 wants 5.0e-5


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # a ValueError where bytes that are not UTF-8 were typed
    return value


def _path(value: Any) -> Path:
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError  # Path("") would be the current folder
    return Path(value)


_AS_TYPE: dict[type, Callable[[Any], Any]] = {bool: _boolean, int: _integer, float: _number, str: _text, Path: _path}
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Config):
        return {name: item for name, item in value.to_dict().items() if item is not None}
    return str(value) if isinstance(value, Path) else value


def _dashed(value: Any) -> Any:
    """Plain values with the keys of mappings as YAML has them."""
    if isinstance(value, dict):
        return {key_name(name): _dashed(item) for name, item in value.items()}
    return [_dashed(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> Any:
    """A value for a message: texts cut short, for a file may hold megabytes of them."""
    return f"{value[: LONGEST_SHOWN - 1]}…" if isinstance(value, str) and len(value) > LONGEST_SHOWN else value


def nearest(name: str, known: Sequence[str]) -> str:
    """``"; did you mean X?"`` with the known name that is most like ``name``, or ``""`` when none is."""
    if len(name) > LONGEST_SHOWN:
        return ""  # difflib takes minutes over megabytes
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def parse_size(value: str | int) -> int:
    """``"1.5GB"``, ``"800 MiB"`` or a plain number of bytes, in bytes (GB is 1000³, GiB is 1024³).

    Raises:
        UserError: it is no such size, or less than 1 MB, which is never what was meant.
    """
    match = _SIZE.fullmatch(str(value))
    if not match:
        raise UserError(f"{value!r} is no size; write it like 800MB or 1.5GB")
    number, unit, binary, _ = match.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.upper()])
    if size < 1_000_000:
        raise UserError(f"{value!r} is less than 1 MB; write it with its unit, like 800MB or 1.5GB")
    return size


def parse_dims(value: Any) -> tuple[int, ...]:
    """``"256,128"``, or a list of such texts or of numbers, as distinct whole numbers, largest first.

    Raises:
        UserError: something in it is no whole number of at least 1.
    """
    words = [word for item in (value if isinstance(value, list | tuple) else [value]) for word in str(item).split(",")]
    if bad := [word for word in words if not word.strip().isdecimal() or int(word) < 1]:
        raise UserError(f"{bad[0]!r} is no number of dimensions; write them like 256,128,64")
    return tuple(sorted({int(word) for word in words}, reverse=True))


def read_yaml(kind: type[Config], path: Path) -> dict[str, Any]:
    """Values for ``kind`` from a YAML file whose keys are its flags, with dashes or underscores.

    Raises:
        UserError: no such file, no YAML mapping, an unknown or doubled key, or a value out of bounds; with its line.
    """
    file = YamlFile(path)
    if file.root is None:
        return {}
    if file.root.id != "mapping":
        raise UserError(f"{path}: a configuration is lines of the form 'key: value'")
    return _read_mapping(kind, file, file.root)


def _read_mapping(kind: type[Config], file: YamlFile, node: Any) -> dict[str, Any]:
    """The values of one mapping of the file, by field of ``kind``."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, content in node.value:
        where = f"{file.path}:{key.start_mark.line + 1}"
        if key.id != "scalar":
            raise UserError(f"{where}: a key is a word, not a {key.id}")
        name = str(key.value).replace("-", "_")
        if name not in fields:
            known = [key_name(field) for field in fields]
            others = "" if kind.has_flags else f"; known here: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {_shown(key.value)}{nearest(key_name(name), known) or others}")
        if name in values:
            raise UserError(f"{where}: {key_name(name)} stands here a second time")
        value = _read_value(fields[name], file, content)
        try:
            values[name] = kind.convert(fields[name], value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return values


def _read_value(field: "dataclasses.Field[Any]", file: YamlFile, node: Any) -> Any:
    """A value of the file; mappings that stand for a record become it, and their faults are said with their lines."""
    record = record_of(field)
    if record is None or node.id == "scalar":
        return file.value(node)
    return [
        _read_record(record, file, item) if item.id == "mapping" else file.value(item)
        for item in (node.value if node.id == "sequence" else [node])
    ]


def _read_record(record: type[Config], file: YamlFile, node: Any) -> Config:
    values = _read_mapping(record, file, node)
    missing = [key_name(field.name) for field in needed(record) if field.name not in values]
    try:
        if missing:
            raise UserError(f"{' and '.join(missing)} must be given")
        return record(**values)
    except UserError as error:
        raise UserError(f"{file.path}:{node.start_mark.line + 1}: {error}") from None
