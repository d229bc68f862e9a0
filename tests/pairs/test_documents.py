import gzip
from pathlib import Path

import pytest

from biencoder.errors import UserError
from biencoder.pairs.documents import Document, read_documents


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_folder_holds_a_document_a_file_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "two\nlines\n")
    write(tmp_path / "a.md", "# Title A #\n\nbody\n")
    write(tmp_path / "deep" / "C.MD", "no title\n")
    write(tmp_path / ".hidden" / "x.md", "hidden")
    write(tmp_path / ".x.txt", "hidden")
    write(tmp_path / "code.py", "# no document")
    found = list(read_documents(tmp_path))
    assert found == [Document("Title A", "\nbody\n"), Document("", "two\nlines\n"), Document("", "no title\n")]


@pytest.mark.parametrize(
    ("content", "title", "text"),
    [
        ("# One\ntext", "One", "text"),
        ("\ufeff# One\r\ntext\r\n", "One", "text\n"),
        ("---\ntags: x\ntitle: 'From above'\n---\ntext", "From above", "text"),
        ("---\ntitle: Same\n---\n\n# Same\n\ntext", "Same", "\ntext"),
        ("---\ntitle: Same\n---\n# Other\ntext", "Same", "# Other\ntext"),
        ("text\n# One\n", "", "text\n# One\n"),
        ("## Two\ntext", "", "## Two\ntext"),
        ("#hashtag text", "", "#hashtag text"),
        ("", "", ""),
    ],
)
def test_where_a_markdown_file_has_its_title(content: str, title: str, text: str, tmp_path: Path) -> None:
    assert list(read_documents(write(tmp_path / "page.md", content))) == [Document(title, text)]


def test_files_of_documents_are_read_as_texts_are(tmp_path: Path) -> None:
    rows = '{"_id": "1", "title": "T  t", "text": "# x\\r\\ny"}\n\n{"title": null, "text": "z"}\n'
    path = write(tmp_path / "corpus.jsonl.gz", gzip.compress(rows.encode()))
    assert list(read_documents(path)) == [Document("T t", "# x\ny"), Document("", "z")]
    assert list(read_documents(write(tmp_path / "a.txt", "one\ntwo\n"))) == [Document("", "one"), Document("", "two")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', r"a\.jsonl:2: needs `text`"),
        ("a.md", b"# x\n\xff", r"a\.md:2: not UTF-8 text \(byte 0xff, column 1\)"),
        ("a.md", "# x".encode("utf-16"), r"a\.md is UTF-16 text; save it as UTF-8"),
        ("folder/a.rst", "x", "the folder holds no .md or .markdown or .txt file"),
    ],
)
def test_what_cannot_be_read_is_said(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        list(read_documents(path.parent if "/" in name else path))


def test_documents_that_differ_in_case_and_white_space_are_the_same() -> None:
    assert Document("A", "b  C\n").key == Document("a", "b c").key
    assert Document("A", "b c").key != Document("A", "b d").key
