"""YAML files of plain values: mappings, lists, texts, numbers. PyYAML is imported when one is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from biencoder.errors import UserError

LARGEST = 1_000_000  # bytes; a configuration has a few hundred


class YamlFile:
    """The root node of a file, and values out of its nodes.

    The safe loader makes no objects of Python's. Beyond that, aliases are refused: nine lines of them make a value that
    fills the memory as soon as a message quotes it.

    Attributes:
        path: of the file.
        root: its node, None for an empty file.

    Raises:
        UserError: the file cannot be read or is no YAML, with its line.
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
            UserError: it is none, such as the 31st of February; with its line.
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
            raise UserError(f"{self.path}:{line}: not YAML that can be read: it is nested too deeply") from None
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:
            raise UserError(f"{self.path}:{line}: not YAML: {error}") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"--config: cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > LARGEST:
        raise UserError(f"--config {path}: larger than {LARGEST:,} bytes; this is no configuration")
    return content


def _without_aliases(loader: Any) -> Any:
    import yaml

    compose = loader.compose_node

    def refuse(parent: Any, index: Any) -> Any:
        if loader.check_event(yaml.AliasEvent):
            mark = loader.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write the value out", mark)
        return compose(parent, index)

    loader.compose_node = refuse
    return loader
