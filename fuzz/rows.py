"""Rows of training data: JSON lines, CSV, gzip and Parquet. ``python -m fuzz.rows -max_total_time=600``."""

import gzip
import io

import atheris

with atheris.instrument_imports(include=["biencoder"]):
    from biencoder.data.files.records import BadRows, Example, iter_examples
    from biencoder.data.text import is_blank
    from biencoder.errors import UserError

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.driver import Place, fuzz, require

PLACES = [Place(name) for name in ("rows.jsonl", "rows.csv", "rows.jsonl.gz", "rows.csv.gz", "rows.parquet")]


def check(example: Example) -> None:
    """What holds of every row that is accepted."""
    for text in (example.query, *example.positives, *example.negatives):
        require(type(text) is str and not is_blank(text), f"accepted {text!r}")
        text.encode()
    require(len(example.positives) > 0, "accepted a row without a positive")
    for scores, texts in (
        (example.positive_scores, example.positives),
        (example.negative_scores, example.negatives),
    ):
        require(scores is None or len(scores) == len(texts), "accepted scores that do not fit")


def target(data: bytes) -> None:
    """The first byte chooses the format, and for gzip whether the rest is packed here or taken as it is."""
    if not data:
        return
    place, content = PLACES[data[0] % len(PLACES)], data[1:]
    if place.path.suffix == ".gz" and data[0] & 0x80:
        content = gzip.compress(content, 1)
    path = place.write(content)
    kept, bad = [], BadRows()
    try:
        kept = list(iter_examples([path], "skip", bad))
    except UserError as error:
        require(path.name in str(error), f"a message without the file: {error}")
    for where, example in kept:
        require(where.startswith(f"{path}:"), where)
        check(example)
    try:
        stopped = list(iter_examples([path], "stop"))
    except UserError as error:
        require(path.name in str(error), f"a message without the file: {error}")
    else:
        require(not bad.kinds and stopped == kept, "stop and skip do not agree")


def seeds() -> list[bytes]:
    """A file of each kind."""
    json_lines = (
        b'{"query": "q", "pos": ["p", "r"], "neg": ["n"], "pos_scores": [1, 0.5], "neg_scores": [0]}\n'
        b'\n{"anchor": "\xc3\xa9", "positive": "p", "negative_1": "n", "negative_2": null, "prompt": "x"}\r\n'
        b'{"sentence1": "a", "sentence2": "b", "score": -0.5}\n{"text": "t"}'
    )
    csv = b'query,pos,neg,pos_scores\na,"b ""c"", d","[""e"", ""f""]",0.5\r\n"two\nlines",x,,1\n'
    packed = io.BytesIO()
    pq.write_table(pa.table({"query": ["q"], "pos": [["p"]], "neg": [["n", "m"]]}), packed, compression="none")
    return [
        b"\0" + json_lines,
        b"\0\xef\xbb\xbf" + json_lines,
        b"\1" + csv,
        b"\2" + gzip.compress(json_lines),
        b"\xc8" + csv,
        b"\4" + packed.getvalue(),
    ]


if __name__ == "__main__":
    fuzz(target, seeds())
