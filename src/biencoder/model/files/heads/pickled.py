"""Float tensors in a file of ``torch.save``, read by a parser that runs nothing.

Such a file is a zip archive: ``NAME/data.pkl`` is a pickle that describes the tensors, ``NAME/data/0`` and so on are
their raw numbers. A pickle is a program for a small stack machine, and Python's machine calls whatever the program
names. Ours knows the few instructions and names that a dict of float tensors needs, calls nothing, and refuses the
rest. BAAI/bge-m3 has its ``sparse_linear.pt`` and ``colbert_linear.pt`` in this format only.
"""

import contextlib
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from biencoder.errors import UserError, first_line

PICKLE = "data.pkl"
PICKLE_BYTES = 1 << 20  # two tensors take some three hundred
DIMENSIONS = 8
COPIES = 4  # of the file's size, for all tensors: they may share a storage, and each gets memory of its own
SHOWN = 80  # characters of a name or of another library's message

DICT = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
DTYPES = {
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
}
NAMES = {DICT, TENSOR, PARAMETER, *DTYPES}

ZIP = b"PK\x03\x04"
OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that began each file before the format was a zip archive
ENCRYPTED = 1  # a flag of a zip member
ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    OSError,  # a place before the beginning of the file
    OverflowError,  # a place beyond any file
    ValueError,
    struct.error,
)

CONVERT = "Convert it to safetensors on a machine that you trust"


class _Refused(Exception):
    """What is wrong with the file and how to mend it, as the rest of a sentence that begins with its name."""


def _foreign(found: str) -> _Refused:
    return _Refused(f"holds more than float tensors ({found}). {CONVERT}")


def _damaged(found: str) -> _Refused:
    return _Refused(f"is damaged ({found}). Download it again")


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The float tensors of a dict that ``torch.save`` wrote, by name, on the CPU, each with memory of its own.

    They keep their shapes and their dtypes: float16, bfloat16, float32 or float64. Parameters come as plain tensors.

    Raises:
        UserError: the file is missing or damaged, or it holds anything else than contiguous float tensors.
    """
    try:
        with path.open("rb") as file:
            archive = _Archive(file)
            slices = _named_slices(_Machine().run(archive.pickle()))
            return _tensors(archive, slices)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except _Refused as error:
        raise UserError(f"{path} {error}") from error


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names; only ever compared with names that we know."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """A member of the archive with raw numbers, as the pickle declares it."""

    dtype: torch.dtype
    key: str
    length: int

    @property
    def size(self) -> int:
        return self.length * self.dtype.itemsize


@dataclass(frozen=True)
class _Slice:
    """The part of a storage that a tensor is."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return math.prod(self.shape)


class _Archive:
    """The members of the zip archive. None is compressed, and all together are no larger than the file.

    Args:
        file: stays open as long as members are read.

    Raises:
        _Refused: it is no such archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        beginning = file.read(len(OLD))
        if beginning == OLD:
            raise _Refused(f"has the format that PyTorch wrote before version 1.6. {CONVERT}")
        if not beginning.startswith(ZIP):
            raise _Refused("is no file of torch.save (it does not begin as a zip archive). Download it again")
        self.size = file.seek(0, 2)
        with _zip_errors():
            self._zip = zipfile.ZipFile(file)
        members = self._zip.infolist()
        self._members = {member.filename: member for member in members}
        if len(self._members) < len(members):
            raise _damaged("several of its members have the same name")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _Refused(f"has compressed members, which torch.save does not write. {CONVERT}")
            if member.flag_bits & ENCRYPTED:
                raise _Refused(f"has encrypted members, which torch.save does not write. {CONVERT}")
        if sum(member.file_size for member in members) > self.size:
            raise _damaged("its members claim to be larger than the file")
        self._prefix = self._find_pickle()

    def _find_pickle(self) -> str:
        """The folder that all members are in, up to its slash."""
        found = [name for name in self._members if name.rpartition("/")[2] == PICKLE]
        if len(found) != 1 or found[0].count("/") != 1:
            raise _Refused(
                f"is no file of torch.save (such a file has one {PICKLE}, in a folder; this one has {len(found)}). "
                f"{CONVERT}"
            )
        return found[0].removesuffix(PICKLE)

    def pickle(self) -> bytes:
        """The pickle that describes the tensors."""
        byteorder = self._read("byteorder", 16) if f"{self._prefix}byteorder" in self._members else b"little"
        if byteorder != b"little":  # files from before PyTorch 2.1 do not say it
            raise _Refused(f"has numbers in big-endian order. {CONVERT}")
        return self._read(PICKLE, PICKLE_BYTES)

    def numbers(self, storage: _Storage) -> bytearray:
        """The raw numbers of a storage."""
        name = f"data/{storage.key}"
        content = self._read(name, storage.size)
        if len(content) != storage.size:
            raise _damaged(f"{name[:SHOWN]!r} has {len(content)} bytes and should have {storage.size}")
        return bytearray(content)

    def _read(self, name: str, limit: int) -> bytes:
        member = self._members.get(self._prefix + name)
        if member is None:
            raise _damaged(f"{name[:SHOWN]!r} is missing")
        if member.file_size > limit:
            raise _damaged(f"{name[:SHOWN]!r} has {member.file_size} bytes, and may have {limit} at most")
        with _zip_errors():
            return self._zip.read(member)


@contextlib.contextmanager
def _zip_errors() -> Iterator[None]:
    try:
        yield
    except ZIP_ERRORS as error:
        raise _damaged(first_line(error)[:SHOWN]) from error


class _Machine:
    """A stack machine for the instructions of ``torch.save``. Its values are data, and none is ever called.

    A pickle can nest values deeper than Python's recursion goes, and put a dict into itself. So nothing here prints,
    hashes or compares a value before we know that it is text or a number.
    """

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, object] = {}
        self._storages: dict[str, _Storage] = {}
        push, get, put, ignore = self._stack.append, self._get, self._put, _ignore
        self._steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), ignore),
            **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2"), push),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_TUPLE": lambda _: push(()),
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "TUPLE": lambda _: push(tuple(self._pop_to_mark())),
            "TUPLE1": lambda _: push(tuple(self._pop(1))),
            "TUPLE2": lambda _: push(tuple(self._pop(2))),
            "TUPLE3": lambda _: push(tuple(self._pop(3))),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), get),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), put),
            "MEMOIZE": lambda _: put(len(self._memo)),
            "GLOBAL": self._name,
            "STACK_GLOBAL": lambda _: self._name(" ".join(_texts(self._pop(2)))),
            "BINPERSID": lambda _: push(self._storage(*self._pop(1))),
            "REDUCE": lambda _: push(_rebuilt(*self._pop(2))),
            "SETITEM": lambda _: self._set(self._pop(2)),
            "SETITEMS": lambda _: self._set(self._pop_to_mark()),
            "BUILD": lambda _: self._build(*self._pop(1)),
        }

    def run(self, program: bytes) -> object:
        """The value that a pickle describes.

        Raises:
            _Refused: it is not a pickle, or it has an instruction that a dict of float tensors does not need.
        """
        end = 0
        for instruction, argument, position in _instructions(program):
            step = self._steps.get(instruction)
            if step is None:
                raise _foreign(f"opcode {instruction}")
            step(argument)
            end = position + 1
        if end != len(program) or len(self._stack) != 1 or self._marks:
            raise _damaged(f"{PICKLE} ends in the wrong place")
        return self._stack.pop()

    def _pop(self, count: int) -> list[object]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - count < floor:
            raise _damaged(f"{PICKLE} takes a value that is not there")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _pop_to_mark(self) -> list[object]:
        if not self._marks:
            raise _damaged(f"{PICKLE} lacks a mark")
        start = self._marks.pop()
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def _top(self) -> object:
        (top,) = self._pop(1)
        self._stack.append(top)
        return top

    def _put(self, number: int) -> None:
        self._memo[number] = self._top()

    def _get(self, number: int) -> None:
        if number not in self._memo:
            raise _damaged(f"{PICKLE} takes a value that was never kept")
        self._stack.append(self._memo[number])

    def _name(self, text: str) -> None:
        if text not in NAMES:
            raise _foreign(f"it names {text[:SHOWN].replace(' ', '.', 1)!r}")
        self._stack.append(_Name(text))

    def _storage(self, described: object) -> _Storage:
        """A storage from its kind, key, place and length. Where it lay does not matter: we read it to the CPU."""
        match described:
            case ("storage", _Name(kind), str(key), str(_), int(length)) if kind in DTYPES and _is_number(length):
                storage = _Storage(DTYPES[kind], key, length)
            case _:
                raise _foreign("it names a storage of something else")
        if self._storages.setdefault(key, storage) != storage:
            raise _damaged(f"it describes the storage {key[:SHOWN]!r} in two ways")
        return storage

    def _set(self, items: list[object]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            raise _damaged(f"{PICKLE} sets an item of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise _foreign("a key of a dict is no text")
            if key in target:
                raise _damaged(f"the key {key[:SHOWN]!r} occurs twice")
            target[key] = value

    def _build(self, state: object) -> None:
        """Pass over the versions of modules that ``state_dict`` keeps as an attribute of its dict."""
        if type(self._top()) is not dict or type(state) is not dict or state.keys() - {"_metadata"}:
            raise _foreign("an object has attributes")


def _instructions(program: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and position of each instruction, up to the one that stops."""
    try:
        for opcode, argument, position in pickletools.genops(program):
            yield opcode.name, argument, position or 0
    except (ValueError, Warning) as error:  # it warns of strange escapes, and Python may make errors of warnings
        raise _damaged(f"{PICKLE} is no whole pickle") from error


def _ignore(_: object) -> None:
    """Pass over an instruction that says nothing of tensors."""


def _texts(values: list[object]) -> list[str]:
    texts = [value for value in values if type(value) is str]
    if len(texts) < len(values):
        raise _damaged(f"{PICKLE} has a name that is no text")
    return texts


def _is_number(value: object) -> bool:
    """Whether a value is a whole number and not a truth value, which is one to Python."""
    return type(value) is int


def _rebuilt(function: object, arguments: object) -> object:
    """What PyTorch would build by a call: an empty dict or a tensor; a parameter is its tensor."""
    name = function.text if isinstance(function, _Name) else ""
    match arguments:
        case () if name == DICT:
            return {}
        case (_Slice() as inner, bool(), dict(hooks)) if name == PARAMETER and not hooks:
            return inner
        case (_Storage() as storage, offset, shape, strides, bool(), dict(hooks)) if name == TENSOR and not hooks:
            return _checked(storage, offset, shape, strides)
    raise _foreign("it calls a function in an unknown way")


def _checked(storage: _Storage, offset: object, shape: object, strides: object) -> _Slice:
    """A slice that lies inside its storage and has its numbers in order, without gaps."""
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise _damaged("the shape and the strides of a tensor do not match")
    if type(offset) is not int or not all(map(_is_number, (*shape, *strides))):
        raise _damaged("the shape of a tensor is not of whole numbers")
    if len(shape) > DIMENSIONS or any(size < 1 for size in shape):
        raise _damaged(f"a tensor is empty, has a negative size or has more than {DIMENSIONS} dimensions")
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:  # a dimension of size 1 may have any stride
            raise _Refused(f"holds a tensor whose numbers are not in order (it is not contiguous). {CONVERT}")
        step *= size
    if offset < 0 or offset + step > storage.length:
        raise _damaged("a tensor reaches outside its storage")
    return _Slice(storage, offset, shape)


def _named_slices(value: object) -> dict[str, _Slice]:
    if type(value) is not dict:
        raise _foreign("it is no dict")
    for name, tensor in value.items():
        if type(tensor) is not _Slice:
            raise _foreign(f"{name[:SHOWN]!r} is no tensor")
    return value


def _tensors(archive: _Archive, slices: Mapping[str, _Slice]) -> dict[str, Tensor]:
    """Copies of the slices; a small file cannot ask for much memory."""
    if sum(piece.length * piece.storage.dtype.itemsize for piece in slices.values()) > COPIES * archive.size:
        raise _Refused(f"has too many tensors that share their numbers. {CONVERT}")
    storages = {piece.storage for piece in slices.values()}
    numbers = {storage: archive.numbers(storage) for storage in storages}
    tensors: dict[str, Tensor] = {}
    for name, piece in slices.items():
        dtype = piece.storage.dtype
        place = piece.offset * dtype.itemsize
        flat = torch.frombuffer(numbers[piece.storage], dtype=dtype, count=piece.length, offset=place)
        tensors[name] = flat.view(piece.shape).clone()
    return tensors
