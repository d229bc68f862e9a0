"""Texts to encode, a collection's corpus, documents for pairs, and TREC runs of them. ``python -m fuzz.texts``."""

import gzip
from pathlib import Path
from unicodedata import category

import atheris

with atheris.instrument_imports(include=["biencoder"]):
    from biencoder.data.files.beir import read_texts as read_corpus
    from biencoder.errors import UserError
    from biencoder.pairs.documents import read_documents
    from biencoder.pairs.sentences import plain, sections, sentences
    from biencoder.retrieval.texts import read_texts
    from biencoder.retrieval.trec import write_trec_run
    from biencoder.terminal import escape

from fuzz.driver import Place, fuzz, require

PLACES = [Place(name) for name in ("a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.md")]
RUN = Place("found.trec")


def target(data: bytes) -> None:
    """The first byte chooses the file's name."""
    if not data:
        return
    place, content = PLACES[data[0] % len(PLACES)], data[1:]
    if place.path.suffix == ".gz" and data[0] & 0x80:
        content = gzip.compress(content, 1)
    path = place.write(content)
    for read in (_texts, _corpus, _documents):
        try:
            read(path)
        except UserError as error:
            require(path.name in str(error) or RUN.path.name in str(error), f"a message without the file: {error}")


def _texts(path: Path) -> None:
    rows = list(read_texts(path))
    for row in rows:
        row.text.encode()
        driving = {letter for letter in escape(row.text) if category(letter) in ("Cc", "Cs")}
        require(driving <= {"\n", "\t"}, f"a terminal would obey {driving}")
    write_trec_run(RUN.path, {"q": {row.id: float(number) for number, row in enumerate(rows)}})
    for line in RUN.path.read_text().splitlines():
        require(len(line.split()) == 6, f"a line of a run: {line!r}")


def _corpus(path: Path) -> None:
    for identifier, text in read_corpus(path).items():
        require(bool(identifier), "an empty id")
        text.encode()


def _documents(path: Path) -> None:
    for document in read_documents(path):
        document.whole.encode()
        last = 0
        for sentence in sentences(document.text):
            require(last <= sentence.start < sentence.end <= len(document.text), "sentences overlap")
            last = sentence.end
            plain(document.text[sentence.start : sentence.end])
        list(sections(document.text))


SEEDS = [
    b"\0one text\n\ntwo\xc2\xa0\r\nlast",
    b'\1{"_id": "d1", "title": "T", "text": "x"}\n{"_id": 7, "text": "y"}\n\n{"text": ""}\n',
    b"\x82" + b"packed here\nline\n",
    b"\3" + gzip.compress(b'{"text": "packed"}\n'),
    b"\4---\ntitle: 'A b'\n---\n# A b\n\nA sentence. Another one? Yes!\n\n* item\n* [link](u) **bold** `code`\n\n"
    b"```\ncode\n```\n\n| a | b |\n\n<!-- c -->\nUnder\n===\nText. e.g. this.\n",
]

if __name__ == "__main__":
    fuzz(target, SEEDS)
