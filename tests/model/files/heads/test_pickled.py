import os
import pickle
import pickletools
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from biencoder.errors import UserError
from biencoder.model.files.heads.pickled import PICKLE, read_pickled

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
Parts = dict[str, bytes]


def save(path: Path, content: object, protocol: int = 2) -> Path:
    torch.save(content, path, pickle_protocol=protocol)
    return path


def parts(path: Path) -> Parts:
    """The members of a file of torch.save by their names in its folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return save(tmp_path / "layer.pt", nn.Linear(3, 2).state_dict())


def change(path: Path, **changes: bytes | None) -> Path:
    """The same file with other members; None takes one away. ``data_pkl`` stands for ``data.pkl`` and so on."""
    named = {{"data_pkl": PICKLE, "data_0": "data/0"}.get(name, name): data for name, data in changes.items()}
    merged = parts(path) | named
    return write(path, {name: data for name, data in merged.items() if data is not None})


def edit(path: Path, old: bytes, new: bytes) -> Path:
    """The same file with other bytes in its pickle, where the old ones come first."""
    program = parts(path)[PICKLE]
    assert old in program
    return change(path, data_pkl=program.replace(old, new, 1))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_pickled(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(("Download it again", "Convert it to safetensors on a machine that you trust"))
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300
    return message


def assert_reads(path: Path, content: Mapping[str, Tensor]) -> None:
    found = read_pickled(path)
    assert list(found) == list(content)
    for name, tensor in content.items():
        assert type(found[name]) is Tensor
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())
        assert found[name].untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def read_or_refuse(path: Path) -> dict[str, Tensor]:
    """The tensors of a changed file; empty if it is refused. No other exception passes."""
    try:
        found = read_pickled(path)
    except UserError:
        return {}
    assert all(type(name) is str and tensor.is_floating_point() for name, tensor in found.items())
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_layer_is_read_as_it_was_saved(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    state = nn.Linear(5, 3).to(dtype).state_dict()
    assert_reads(save(tmp_path / "layer.pt", state, protocol), state)


def test_the_size_of_real_layers(tmp_path: Path) -> None:
    for layer in (nn.Linear(1024, 1), nn.Linear(1024, 1024)):
        state = layer.half().state_dict()
        assert_reads(save(tmp_path / "layer.pt", state), state)


def test_parameters_and_plain_dicts_are_read(tmp_path: Path) -> None:
    content = {"weight": nn.Parameter(torch.randn(2, 3)), "scale": torch.tensor(2.0).double(), "wide": torch.ones(1, 4)}
    assert_reads(save(tmp_path / "dict.pt", content), content)
    assert_reads(save(tmp_path / "empty.pt", {}), {})


def test_tensors_of_a_shared_storage_get_memory_of_their_own(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    content = {"whole": whole, "again": whole, "rows": whole[4:10].view(2, 3), "last": whole[11]}
    path = save(tmp_path / "shared.pt", content)
    assert_reads(path, content)
    found = read_pickled(path)
    found["whole"].zero_()
    assert torch.equal(found["again"], whole)


def test_many_names_of_one_large_storage_are_refused(tmp_path: Path) -> None:
    whole = torch.ones(100_000)
    path = save(tmp_path / "bomb.pt", {str(number): whole[number:] for number in range(100)})
    assert "too many tensors that share" in refusal(path)


def test_files_for_a_gpu_and_of_older_pytorch_are_read(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    path = edit(save(tmp_path / "layer.pt", state), b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:0")
    assert_reads(path, state)
    content = parts(path)
    assert_reads(write(path, {name: content[name] for name in (PICKLE, "data/0", "data/1", "version")}), state)


def test_no_code_runs(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {sentinel}",)

    pickle.loads(pickle.dumps(Payload()))
    sentinel.unlink()  # so it would have worked
    for protocol in (2, 4):
        path = save(tmp_path / "evil.pt", {"weight": torch.ones(2), "bias": Payload()}, protocol)
        assert "system" in refusal(path)
        for evil in (pickle.dumps(Payload(), protocol), pickle.dumps(Payload(), 0)):
            refusal(change(path, data_pkl=evil))
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"weight": torch.ones(2), "step": 3}, "'step' is no tensor"),
        ({"layer": {"weight": torch.ones(2)}}, "'layer' is no tensor"),
        ({"ids": torch.arange(3)}, r"it names 'torch\.LongStorage'"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, r"it names 'torch\.BoolStorage'"),
        ({"weight": torch.ones(2, dtype=torch.complex64)}, r"it names 'torch\.ComplexFloatStorage'"),
        ({"weight": torch.ones(2).to_sparse()}, r"it names 'torch\._utils\._rebuild_sparse_tensor'"),
        ({1: torch.ones(2)}, "a key of a dict is no text"),
        ([torch.ones(2)], "opcode EMPTY_LIST"),
        ({"weight": 1.5}, "opcode BINFLOAT"),
        (torch.ones(2), "it is no dict"),
        (nn.Linear(2, 2), r"it names 'torch\.nn\.modules\.linear\.Linear'"),
        ({"weight": torch.ones(2, 3).T}, "not contiguous"),
        ({"weight": torch.ones(1).expand(4)}, "not contiguous"),
        ({"weight": torch.ones(0, 3)}, "a tensor is empty"),
        ({"weight": torch.ones([1] * 9)}, "more than 8 dimensions"),
        (OrderedDict(weight=torch.ones(2), name="x"), "'name' is no tensor"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    path = save(tmp_path / "other.pt", content)
    with pytest.raises(UserError, match=found):
        read_pickled(path)
    refusal(path)


def test_an_attribute_of_the_dict_is_refused(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    state.other = 1  # type: ignore[attr-defined]
    assert "attributes" in refusal(save(tmp_path / "layer.pt", state))


# The shape and strides of the weight are (2, 3) and (3, 1), at offset 0 of 6 numbers.
SLICE = b"K\x00K\x02K\x03\x86"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (SLICE, b"K\x01K\x02K\x03\x86", "outside its storage"),
        (SLICE, b"J\xff\xff\xff\xffK\x02K\x03\x86", "outside its storage"),
        (SLICE, b"K\x00K\x03K\x03\x86", "outside its storage"),
        (SLICE, b"K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", "not contiguous"),
        (SLICE, b"K\x00J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86", "a negative size"),
        (SLICE, b"K\x00K\x00K\x03\x86", "a tensor is empty"),
        (SLICE, b"K\x00K\x02\x85", "do not match"),
        (SLICE, b"K\x00\x88K\x03\x86", "whole numbers"),
        (SLICE, b"NK\x02K\x03\x86", "whole numbers"),
        (SLICE, b"K\x00NN\x86", "whole numbers"),
        (b"K\x03K\x01\x86", b"K\x04K\x01\x86", "not contiguous"),
        (b"K\x03K\x01\x86", b"K\x03J\xff\xff\xff\xff\x86", "not contiguous"),
        (b"K\x06t", b"K\x07t", "has 24 bytes and should have 28"),
        (b"K\x06t", b"M\xff\xfft", "has 24 bytes and should have"),
        (b"K\x06t", b"K\x05t", "outside its storage"),
        (b"K\x06t", b"J\xff\xff\xff\xfft", "outside its storage"),
        (b"K\x06t", b"\x88t", "a storage of something else"),
        (b"\x01\0\0\x000", b"\x01\0\0\x007", "'data/7' is missing"),
        (b"\x01\0\0\x000", b"\x09\0\0\x00../../0/1", "is missing"),
        (b"\x01\0\0\x001", b"\x01\0\0\x000", "in two ways"),
        (b"\x04\0\0\0bias", b"\x06\0\0\0weight", "'weight' occurs twice"),
        (b"X\x04\0\0\0bias", b"K\x00", "a key of a dict is no text"),
        (b"storage", b"garbage", "a storage of something else"),
        (b"torch\nFloatStorage", b"builtins\neval", "'builtins.eval'"),
        (b"torch\nFloatStorage", b"collections\nOrderedDict", "a storage of something else"),
        (b"ctorch._utils\n_rebuild_tensor_v2", b"ctorch\nFloatStorage", "in an unknown way"),
    ],
)
def test_a_pickle_that_lies_is_refused(layer: Path, old: bytes, new: bytes, found: str) -> None:
    assert found in refusal(edit(layer, old, new))


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (b"", "no whole pickle"),
        (b"}.}.", "wrong place"),
        (b"\x80\x02", "no whole pickle"),
        (b"\x80\x02.", "wrong place"),
        (b"\x80\x02}}.", "wrong place"),
        (b"\x80\x02(}.", "wrong place"),
        (b"\x80\x02q\x00.", "not there"),
        (b"\x80\x02h\x07.", "never kept"),
        (b"}(N\x85.", "wrong place"),
        (b"}(\x86.", "not there"),
        (b"t.", "lacks a mark"),
        (b"}(Nu.", "sets an item"),
        (b"N(NNu.", "sets an item"),
        (b"\x80\x04\x8c\x02osN\x93.", "a name that is no text"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x05\x1b[2Jx\x93.", "'os.\\x1b[2Jx'"),
        (b"\x8d" + b"\xff" * 8 + b"x", "no whole pickle"),
        (b"X\xff\xff\xff\xffx", "no whole pickle"),
        (b"cos\n" + b"x" * 1000 + b"\n.", "'os.xxx"),
        (b"c\\q\n\n.", "it names"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"ios\nsystem\n.", "opcode"),
        (b"N}b.", "attributes"),
        (b"\x85" * 9, "not there"),
        (b"}q\x00X\x01\0\0\0ah\x00s.", "'a' is no tensor"),  # a dict that holds itself
        (b")" + b"\x85" * 1_000_000 + b".", "it is no dict"),
        (b"}" + b")" + b"\x85" * 1_000_000 + b"Ns.", "a key of a dict is no text"),
        (b"N" + b")" + b"\x85" * 1_000_000 + b"R.", "in an unknown way"),
        (b")" + b"\x85" * 1_000_000 + b"Q.", "a storage of something else"),
        (b"}" * (1 << 20) + b".", "may have 1048576 at most"),
    ],
    ids=range(30),
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_programs_are_refused(layer: Path, program: bytes, found: str) -> None:
    assert found in refusal(change(layer, data_pkl=program))


def spelling_of_keys(program: bytes) -> set[int]:
    """Where the bytes are that spell the names of the tensors; other bytes there are other names."""
    steps = list(pickletools.genops(program))
    return {
        place
        for (_, argument, start), (_, _, end) in pairwise(steps)
        if argument in ("weight", "bias") and start is not None and end is not None
        for place in range(start, end)
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in names that changed bytes make
def test_a_changed_byte_of_the_pickle_gives_the_same_names_or_a_refusal(layer: Path) -> None:
    content = parts(layer)
    program = content[PICKLE]
    kept = {name: content[name] for name in ("data/0", "data/1")}
    keys = spelling_of_keys(program)
    assert len(keys) == 5 + len("weight") + 5 + len("bias")
    read = 0
    for place in range(len(program)):
        for flip in (1, 16, 128, 255):
            changed = bytearray(program)
            changed[place] ^= flip
            found = read_or_refuse(write(layer, {PICKLE: bytes(changed), **kept}))
            read += bool(found)
            assert not found or place in keys or list(found) == ["weight", "bias"], (place, flip)
    assert 0 < read < 4 * len(program)


def test_programs_of_allowed_instructions_at_random_are_read_or_refused(layer: Path) -> None:
    program = parts(layer)[PICKLE]
    places = [place for _, _, place in pickletools.genops(program) if place is not None]
    steps = [program[start:end] for start, end in zip(places, [*places[1:], len(program)], strict=True)]
    dice = random.Random(0)
    for _ in range(500):
        shuffled = list(steps)
        for _ in range(dice.randint(1, 4)):
            place, other = dice.randrange(len(steps)), dice.randrange(len(steps))
            dice.choice([swap, double, drop])(shuffled, min(place, len(shuffled) - 1), min(other, len(shuffled) - 1))
        read_or_refuse(change(layer, data_pkl=b"".join(shuffled)))


def swap(steps: list[bytes], one: int, two: int) -> None:
    steps[one], steps[two] = steps[two], steps[one]


def double(steps: list[bytes], one: int, two: int) -> None:
    steps.insert(one, steps[two])


def drop(steps: list[bytes], one: int, _: int) -> None:
    del steps[one]


def test_a_changed_byte_of_the_archive_gives_the_same_tensors_or_a_refusal(layer: Path) -> None:
    expected = read_pickled(layer)
    whole = change(layer).read_bytes()  # without the padding of torch.save
    dice = random.Random(0)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= dice.choice((1, 16, 128, 255))
        layer.write_bytes(changed)
        found = read_or_refuse(layer)
        assert not found or all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_truncated_file_is_refused(layer: Path) -> None:
    whole = layer.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        layer.write_bytes(whole[:length])
        refusal(layer)


def big_endian(path: Path) -> Path:
    return change(path, byteorder=b"big")


def no_pickle(path: Path) -> Path:
    return change(path, data_pkl=None)


def two_pickles(path: Path) -> Path:
    return write(path, parts(path) | {"more/data.pkl": b"}."})


def pickle_without_a_folder(path: Path) -> Path:
    content = parts(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def short_storage(path: Path) -> Path:
    return change(path, data_0=parts(path)["data/0"][:-1])


def long_storage(path: Path) -> Path:
    return change(path, data_0=parts(path)["data/0"] + b"\0")


def no_storage(path: Path) -> Path:
    return change(path, data_0=None)


def compressed(path: Path) -> Path:
    return write(path, parts(path), zipfile.ZIP_DEFLATED)


def repeated(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"{path.stem}/{PICKLE}", b"}.")
    return path


def encrypted(path: Path) -> Path:
    """The flags are at byte 8 of each entry of the directory."""
    content = path.read_bytes()
    place = content.index(b"PK\x01\x02") + 8
    path.write_bytes(content[:place] + bytes([content[place] | 1]) + content[place + 1 :])
    return path


def overlapping(path: Path) -> Path:
    """Ten thousand bytes in the file, and twenty entries of the directory that name them."""
    content = {**parts(path), "data/large": bytes(10_000)}
    write(path, content)
    with zipfile.ZipFile(path, "a") as archive:
        (large,) = (member for member in archive.infolist() if member.filename.endswith("large"))
        for number in range(20):
            copy = zipfile.ZipInfo(f"{path.stem}/data/{number:05}")
            copy.header_offset, copy.CRC = large.header_offset, large.CRC
            copy.file_size = copy.compress_size = large.file_size
            archive.filelist.append(copy)
        archive._didModify = True  # type: ignore[attr-defined]  # so that it writes the directory anew
    return path


def legacy(path: Path) -> Path:
    torch.save(nn.Linear(3, 2).state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def not_an_archive(path: Path) -> Path:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    return path


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (big_endian, "big-endian"),
        (no_pickle, "this one has 0"),
        (two_pickles, "this one has 2"),
        (pickle_without_a_folder, "in a folder"),
        (short_storage, "'data/0' has 23 bytes and should have 24"),
        (long_storage, "'data/0' has 25 bytes, and may have 24 at most"),
        (no_storage, "'data/0' is missing"),
        (compressed, "compressed members"),
        (repeated, "the same name"),
        (encrypted, "encrypted members"),
        (overlapping, "larger than the file"),
        (legacy, "before version 1.6"),
        (not_an_archive, "does not begin as a zip archive"),
    ],
)
def test_other_archives_are_refused(layer: Path, damage: Callable[[Path], Path], found: str) -> None:
    assert found in refusal(damage(layer))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path}: "):
            read_pickled(path)
