import gzip
from pathlib import Path

import pytest
from data_files import write

from biencoder.data.files.lines import read_lines
from biencoder.errors import UserError


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.JSONL.GZ"])
def test_lines_are_numbered_from_one_and_may_lack_the_last_line_end(tmp_path: Path, name: str) -> None:
    raw = b"one\ntwo\r\nthree"
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.lower().endswith("gz") else raw)
    assert list(read_lines(path)) == [(1, b"one\n"), (2, b"two\r\n"), (3, b"three")]


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd\n"
    assert [line.decode() for _, line in read_lines(write(tmp_path / "a.txt", text))] == [text]


def test_a_byte_order_mark_is_taken_off_the_first_line_only(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    lines = list(read_lines(write(tmp_path / "a.txt", mark + b"a\n" + mark + b"b\n")))
    assert lines == [(1, b"a\n"), (2, mark + b"b\n")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_named(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.txt", "\ufeffa\n".encode(encoding))
    with pytest.raises(UserError, match="UTF-16"):
        list(read_lines(path))


def test_a_truncated_gzip_stream_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    whole = gzip.compress(b"".join(b"%d\n" % (i * 7919 % 10_007) for i in range(200_000)))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.gz: the gzip stream is damaged or cut off after line \d+"):
        list(read_lines(path))


def test_a_damaged_gzip_stream_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    whole = bytearray(gzip.compress(b"text " * 10_000))
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UserError, match="damaged"):
        list(read_lines(path))


def test_a_gz_file_that_is_no_gzip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(b"plain text\n")
    with pytest.raises(UserError, match=r"a\.gz.*gzip"):
        list(read_lines(path))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.txt: No such file"):
        list(read_lines(tmp_path / "absent.txt"))
