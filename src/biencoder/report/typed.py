"""Dataclasses to JSON and back. Reading checks every value, because people edit files, and disks lose parts of them."""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from biencoder.errors import UserError

T = TypeVar("T")


def as_json(value: Any) -> bytes:
    """A dataclass as a JSON object in ASCII, so that it can hold halves of characters, which file names may have."""
    return json.dumps(dataclasses.asdict(value), indent=2, allow_nan=False).encode() + b"\n"


def read_typed(kind: type[T], path: Path) -> T:
    """The dataclass that a JSON file holds; it may hold more, which is left out.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the file that biencoder wrote ({error})") from error
    try:
        read: T = _as(kind, content, "")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: not the file that biencoder wrote: {error}") from None
    return read


def _as(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (each for each in arguments if each is not types.NoneType)
        return None if value is None else _as(inner, value, where)
    if origin is list and isinstance(value, list):
        return [_as(arguments[0], each, f"{where}[{i}]") for i, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: _as(arguments[1], each, f"{where}.{name}") for name, each in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise TypeError(f"{where.lstrip('.') or 'it'} should be {getattr(origin or kind, '__name__', kind)}")


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{where.lstrip('.') or 'it'} should be an object")
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = _as(hints[field.name], value[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where.lstrip('.') or 'it'} lacks {field.name}")
    return kind(**found)
