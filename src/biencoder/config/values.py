"""From what a person typed to a value of the wanted type, and how a message shows what they typed.

Standard library only, so that ``biencoder --help`` is instant.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from biencoder.config.choices import AUTO, OFF, ON
from biencoder.errors import UserError

LONGEST_SHOWN = 200  # characters of a value in a message

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(I?)(B?)\s*", re.IGNORECASE)


def as_type(kind: type, value: Any, flag: str) -> Any:
    """``value``, as typed, as read from YAML or as given in Python, as a ``kind``.

    Args:
        kind: bool, int, float, str or Path.
        value: what to convert.
        flag: what the message calls the value.

    Raises:
        UserError: the value is not of that type.
    """
    try:
        return _AS_TYPE[kind](value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{flag} must be {_TYPE_NAMES[kind]}, not {shown(value)!r}") from None


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
    return float(value)  # PyYAML reads 5e-5 as text, because YAML 1.1 wants 5.0e-5


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # a ValueError if someone typed bytes that are not UTF-8
    return value


def _path(value: Any) -> Path:
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError  # Path("") would be the current folder
    return Path(value)


_AS_TYPE: dict[type, Callable[[Any], Any]] = {bool: _boolean, int: _integer, float: _number, str: _text, Path: _path}
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def parse_size(value: str | int) -> int:
    """``"1.5GB"``, ``"800 MiB"`` or a plain number of bytes, in bytes (GB is 1000³, GiB is 1024³).

    Raises:
        UserError: the value is not a size, or it is less than 1 MB, which nobody means.
    """
    match = _SIZE.fullmatch(str(value))
    if not match:
        raise UserError(f"{value!r} is not a size; write it like 800MB or 1.5GB")
    number, unit, binary, _ = match.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.upper()])
    if size < 1_000_000:
        raise UserError(f"{value!r} is less than 1 MB; write it with its unit, like 800MB or 1.5GB")
    return size


def parse_dims(value: Any) -> tuple[int, ...]:
    """``"256,128"``, or a list of such texts or of numbers, as distinct whole numbers, largest first.

    Raises:
        UserError: one of them is not a whole number of at least 1.
    """
    words = _words(value)
    if bad := [word for word in words if not word.strip().isdecimal() or int(word) < 1]:
        raise UserError(f"{bad[0]!r} is not a number of dimensions; write them like 256,128,64")
    return tuple(sorted({int(word) for word in words}, reverse=True))


def _words(value: Any) -> list[str]:
    """What stands between the commas of a text, or of the items of a list."""
    return [word for item in (value if isinstance(value, list | tuple) else [value]) for word in str(item).split(",")]


def parse_weights(value: Any) -> tuple[float, ...]:
    """``"1,0.3,1"``, or a list of such texts or of numbers, as numbers above 0.

    Raises:
        UserError: one of them is not a number above 0.
    """
    found = []
    for word in _words(value):
        try:
            found.append(_number(word.strip()))
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{shown(word)!r} is not a number; write weights like 1,0.3,1") from None
        if not 0 < found[-1] < math.inf:
            raise UserError(f"{shown(word)!r} is not above 0; write weights like 1,0.3,1")
    return tuple(found)


def parse_share(value: Any) -> float | str:
    """``"auto"``, or a number from 0 to 1.

    Raises:
        UserError: the value is neither.
    """
    if value == AUTO:
        return AUTO
    try:
        share = _number(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{shown(value)!r} is neither a number nor {AUTO}") from None
    if not 0 <= share <= 1:
        raise UserError(f"{share:g} is not a share; write a number from 0 to 1, or {AUTO}")
    return share


def parse_switch(value: Any) -> str:
    """``"auto"``, ``"on"`` or ``"off"``; YAML 1.1 reads the last two as true and false.

    Raises:
        UserError: the value is none of them.
    """
    value = {True: ON, False: OFF}[value] if isinstance(value, bool) else value
    if value not in (AUTO, ON, OFF):
        raise UserError(f"{shown(value)!r} is not {AUTO}, {ON} or {OFF}")
    return str(value)


def shown(value: Any) -> Any:
    """A value for a message: long texts are cut short, because a file may hold megabytes of them."""
    return f"{value[: LONGEST_SHOWN - 1]}…" if isinstance(value, str) and len(value) > LONGEST_SHOWN else value


def nearest(name: str, known: Sequence[str]) -> str:
    """``"; did you mean X?"`` with the known name that is most like ``name``, or ``""`` if none is."""
    if len(name) > LONGEST_SHOWN:
        return ""  # difflib takes minutes over megabytes
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""
