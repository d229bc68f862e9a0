"""A YAML file of plain values, read into the fields of a configuration. PyYAML is imported when a file is read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biencoder.config.options import Config, key_name, needed, record_of
from biencoder.config.values import nearest, shown
from biencoder.errors import UserError

LARGEST = 1_000_000  # bytes; a configuration has a few hundred


def read_yaml(kind: type[Config], path: Path) -> dict[str, Any]:
    """Values for ``kind`` from a YAML file whose keys are its flags, with dashes or underscores.

    Raises:
        UserError: there is no such file, it is not a YAML mapping, a key is unknown or doubled, or a value is out of
            bounds; the message gives the line.
    """
    file = YamlFile(path)
    if file.root is None:
        return {}
    if file.root.id != "mapping":
        raise UserError(f"{path}: a configuration must consist of lines of the form 'key: value'")
    return _read_mapping(kind, file, file.root)


def _read_mapping(kind: type[Config], file: "YamlFile", node: Any) -> dict[str, Any]:
    """The values of one mapping of the file, by field of ``kind``."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, content in node.value:
        where = f"{file.path}:{key.start_mark.line + 1}"
        if key.id != "scalar":
            raise UserError(f"{where}: a key must be a word, not a {key.id}")
        name = str(key.value).replace("-", "_")
        if name not in fields:
            known = [key_name(field) for field in fields]
            others = "" if kind.has_flags else f"; the keys are {', '.join(known)}"
            raise UserError(f"{where}: unknown key {shown(key.value)}{nearest(key_name(name), known) or others}")
        if name in values:
            raise UserError(f"{where}: {key_name(name)} is given a second time")
        value = _read_value(fields[name], file, content)
        try:
            values[name] = kind.convert(fields[name], value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return values


def _read_value(field: "dataclasses.Field[Any]", file: "YamlFile", node: Any) -> Any:
    """A value of the file. Mappings that stand for a record become one, and messages give the lines of their faults."""
    record = record_of(field)
    if record is None or node.id == "scalar":
        return file.value(node)
    return [
        _read_record(record, file, item) if item.id == "mapping" else file.value(item)
        for item in (node.value if node.id == "sequence" else [node])
    ]


def _read_record(record: type[Config], file: "YamlFile", node: Any) -> Config:
    values = _read_mapping(record, file, node)
    missing = [key_name(field.name) for field in needed(record) if field.name not in values]
    try:
        if missing:
            raise UserError(f"{' and '.join(missing)} must be given")
        return record(**values)
    except UserError as error:
        raise UserError(f"{file.path}:{node.start_mark.line + 1}: {error}") from None


class YamlFile:
    """The root node of a file, and the values of its nodes.

    The safe loader creates plain values only, no other Python objects. Aliases are refused as well: nine lines of them
    make a value that fills the memory as soon as a message quotes it.

    Attributes:
        path: where the file is.
        root: its root node; None for an empty file.

    Raises:
        UserError: the file cannot be read or is not YAML; the message gives the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _read(path)
        self.root: Any = self._checked(1, lambda: self._open(content))

    def _open(self, content: bytes) -> Any:
        import yaml

        self._loader = yaml.SafeLoader(content)
        return _without_aliases(self._loader).get_single_node()

    def value(self, node: Any) -> Any:
        """The value of a node.

        Raises:
            UserError: it is not a value, such as the 31st of February; the message gives the line.
        """
        return self._checked(node.start_mark.line + 1, lambda: self._loader.construct_object(node, deep=True))

    def _checked(self, line: int, read: Callable[[], Any]) -> Any:
        import yaml

        try:
            return read()
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else line
            raise UserError(f"{self.path}:{line}: not YAML: {error.problem}") from None
        except yaml.reader.ReaderError as error:
            raise UserError(f"{self.path}: not YAML: {error.reason} ({error.character!r})") from None
        except RecursionError:
            raise UserError(f"{self.path}:{line}: the YAML is nested too deeply to be read") from None
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:
            raise UserError(f"{self.path}:{line}: not YAML: {error}") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"--config: cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > LARGEST:
        raise UserError(f"--config {path}: the file is larger than {LARGEST:,} bytes, so it is not a configuration")
    return content


def _without_aliases(loader: Any) -> Any:
    import yaml

    compose = loader.compose_node

    def refuse(parent: Any, index: Any) -> Any:
        if loader.check_event(yaml.AliasEvent):
            mark = loader.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed; write out the value", mark)
        return compose(parent, index)

    loader.compose_node = refuse
    return loader
