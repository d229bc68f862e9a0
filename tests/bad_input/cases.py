"""Bad files by what reads them: name -> content and what the message must say. The line is part of it."""

import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Cases = dict[str, tuple[bytes, str]]

GOOD_ROW = b'{"query": "word1", "pos": ["word2"]}\n'
LONG = "x" * 5_000_000


def _json(**row: Any) -> bytes:
    return GOOD_ROW + json.dumps(row).encode() + b"\n"


def _parquet(**columns: Any) -> bytes:
    packed = io.BytesIO()
    pq.write_table(pa.table(columns), packed)
    return packed.getvalue()


def _two_columns_of_one_name() -> bytes:
    packed = io.BytesIO()
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["query", "pos", "pos"]), packed)
    return packed.getvalue()


_PACKED = gzip.compress(GOOD_ROW * 500)

ROWS: Cases = {
    "null-byte.jsonl": (GOOD_ROW + b'{"query": "a\0b", "pos": "c"}\n', ":2: a NUL byte (column 13)"),
    "zeros.jsonl": (GOOD_ROW + bytes(4096), ":2: a NUL byte (column 1): the file is damaged"),
    "latin.jsonl": (GOOD_ROW + b'{"query": "caf\xe9", "pos": "c"}\n', ":2: not UTF-8 text (byte 0xe9, column 15)"),
    "overlong.jsonl": (GOOD_ROW + b'{"query": "\xc0\xaf", "pos": "c"}\n', ":2: not UTF-8 text (byte 0xc0"),
    "surrogate-bytes.jsonl": (b'{"query": "\xed\xa0\x80", "pos": "c"}\n', ":1: not UTF-8 text (byte 0xed"),
    "surrogate.jsonl": (b'{"query": "a\\ud800", "pos": "c"}\n', ":1: not JSON"),
    "utf16.jsonl": (GOOD_ROW.decode().encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "utf16-no-mark.jsonl": (GOOD_ROW.decode().encode("utf-16-le"), ":1: a NUL byte"),
    "array.jsonl": (b"[" + GOOD_ROW.strip() + b"]\n", "write one object per line, not a JSON array"),
    "number.jsonl": (GOOD_ROW + b"42\n", ":2: must be a JSON object; found a number"),
    "null.jsonl": (b"null\n", ":1: must be a JSON object; found null"),
    "cut.jsonl": (GOOD_ROW + GOOD_ROW[:20], ":2: not JSON"),
    "deep.jsonl": (b'{"query": ' + b"[" * 5000, ":1: not JSON"),
    "two-on-a-line.jsonl": (GOOD_ROW.strip() + GOOD_ROW, ":1: not JSON"),
    "html.jsonl": (b"<html>\n<body>404</body>\n", ":1: not JSON"),
    "nan.jsonl": (b'{"query": "a", "pos": "b", "pos_scores": [NaN]}\n', ":1: not JSON"),
    "long-garbage.jsonl": (GOOD_ROW + LONG.encode(), ":2: not JSON"),
    "long-names.jsonl": (json.dumps({LONG: 1}).encode(), ":1: no query and no positive column; found: xxxx"),
    "blank.jsonl": (b"\n  \n\r\n", "the file holds no rows"),
    "mark-alone.jsonl": (b"\xef\xbb\xbf", "the file holds no rows"),
    "query-number.jsonl": (_json(query=3, pos="a"), ":2: query must be a text; found a number"),
    "query-list.jsonl": (_json(query=["a"], pos="a"), ":2: query must be a text; found a list"),
    "query-object.jsonl": (_json(query={"text": "a"}, pos="a"), ":2: query must be a text; found an object"),
    "query-null.jsonl": (_json(query=None, pos="a"), ":2: query must be a text; found null"),
    "query-unseen.jsonl": (_json(query="\u200b\u2060\ufeff", pos="a"), ":2: query is empty"),
    "query-controls.jsonl": (_json(query="\u0000\u0007", pos="a"), ":2: query is empty"),
    "positive-object.jsonl": (_json(query="a", pos={"a": 1}), ":2: pos must be a text or a list of texts"),
    "positive-numbers.jsonl": (_json(query="a", pos=[1, 2]), ":2: pos must hold texts only; found a number"),
    "positive-nested.jsonl": (_json(query="a", pos=[["b"]]), ":2: pos must hold texts only; found a list"),
    "positive-true.jsonl": (_json(query="a", pos=True), ":2: pos must be a text or a list of texts; found a boolean"),
    "negative-number.jsonl": (_json(query="a", pos="b", neg=["", 1]), ":2: neg must hold texts only; found a number"),
    "scores-few.jsonl": (_json(query="a", pos=["b", "c"], pos_scores=[1]), ":2: pos_scores holds 1 scores for 2 texts"),
    "scores-text.jsonl": (_json(query="a", pos="b", pos_scores=["1"]), ":2: pos_scores must be a finite number"),
    "scores-true.jsonl": (_json(query="a", pos="b", pos_scores=True), ":2: pos_scores must be a finite number"),
    "prompt-number.jsonl": (_json(query="a", pos="b", prompt=3), ":2: prompt must be a text"),
    "marks.jsonl": (b'{"sentence1": "a", "sentence2": "b", "score": 4.5}\n', ":1: score must be a number from -1 to 1"),
    "label.jsonl": (b'{"sentence1": "a", "sentence2": "b", "label": 1}\n', ":1: sentence1 and sentence2 come with"),
    "no-gzip.jsonl.gz": (GOOD_ROW, "the gzip stream is damaged or cut off after line 0"),
    "half.jsonl.gz": (_PACKED[: len(_PACKED) // 2], "the gzip stream is damaged or cut off after line"),
    "tail.jsonl.gz": (_PACKED[:-4], "the gzip stream is damaged or cut off after line"),
    "trailing.jsonl.gz": (_PACKED + b"garbage", "the gzip stream is damaged or cut off after line"),
    "crc.jsonl.gz": (_PACKED[:-8] + b"\1\2\3\4" + _PACKED[-4:], "the gzip stream is damaged or cut off after line"),
    "stray-quote.csv": (b'query,pos\na,b\nc,d "e" f"\n"g" h,i\n', ":4: not CSV"),
    "open-quote.csv": (b'query,pos\na,b\n"c,d\ne,f\n', ":3: not CSV"),
    "ragged.csv": (b"query,pos\na,b\nc\n", ":3: has 1 cells, but the header has 2"),
    "null-byte.csv": (b"query,pos\na,b\nc,d\0\n", ":3: a NUL byte (column 4)"),
    "latin.csv": (b"query,pos\na,b\nc,\xe9\n", ":3: not UTF-8 text (byte 0xe9, column 3)"),
    "twice.csv": (b"query,pos,pos\na,b,c\n", ":1: two columns are called 'pos'"),
    "no-header.csv": (b"a,b\nc,d\n", ":2: no query and no positive column; found: a, b"),
    "semicolons.csv": (b"query;pos\na;b\n", ":2: no query and no positive column; found: query;pos"),
    "header-alone.csv": (b"query,pos\n", "the file holds no rows"),
    "no-parquet.parquet": (GOOD_ROW, "not a complete Parquet file"),
    "empty.parquet": (b"", "not a complete Parquet file"),
    "cut.parquet": (_parquet(query=["a"], pos=["b"])[:-30], "not a complete Parquet file"),
    "no-rows.parquet": (_parquet(query=pa.array([], pa.string()), pos=pa.array([], pa.string())), "holds no rows"),
    "numbers.parquet": (_parquet(query=[1, 2], pos=["a", "b"]), ":1: query must be a text; found a number"),
    "bytes.parquet": (_parquet(query=[b"a"], pos=["b"]), ":1: query must be a text; found a value of type bytes"),
    "nested.parquet": (_parquet(query=["a"], pos=[[["b"]]]), ":1: pos must hold texts only; found a list"),
    "struct.parquet": (_parquet(query=[{"text": "a"}], pos=["b"]), ":1: query must be a text; found an object"),
    "nulls.parquet": (_parquet(query=["a", None], pos=["b", "c"]), ":2: query must be a text; found null"),
    "columns.parquet": (_parquet(title=["a"]), "no query and no positive column; found: title"),
    "twice.parquet": (_two_columns_of_one_name(), "two columns are called 'pos'"),
}  # fmt: skip

TEXTS: Cases = {
    "latin.txt": (b"good\ncaf\xe9\n", ":2: not UTF-8 text (byte 0xe9, column 4)"),
    "null-byte.txt": (b"good\na\0b\n", ":2: a NUL byte (column 2)"),
    "binary.txt": (b"\x7fELF\2\1\1" + bytes(64), ":1: a NUL byte"),
    "utf16.txt": ("good\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "cut.txt.gz": (gzip.compress(b"good\n" * 999)[:-9], "the gzip stream is damaged or cut off after line"),
    "no-gzip.txt.gz": (b"good\n", "the gzip stream is damaged or cut off after line 0"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', ":2: not UTF-8 text (byte 0xe9"),
    "null-byte.jsonl": (b'{"text": "a"}\n{"text": "b\0"}\n', ":2: a NUL byte"),
    "surrogate.jsonl": (b'{"text": "\\udc00"}\n', ":1: not JSON"),
    "array.jsonl": (b'[{"text": "a"}]\n', ":1: not a JSON object"),
    "number.jsonl": (b'{"text": 3}\n', ":1: needs `text`, a string"),
    "nested.jsonl": (b'{"text": {"a": "b"}}\n', ":1: needs `text`, a string"),
    "title.jsonl": (b'{"text": "a", "title": ["b"]}\n', ":1: needs `text`, a string"),
    "deep.jsonl": (b'{"text": ' + b"[" * 5000, ":1: not JSON"),
    "id.jsonl": (b'{"_id": {"a": 1}, "text": "a"}\n', ":1: `_id` must be a string"),
}

CORPUS: Cases = {
    "latin": (b'{"_id": "d0", "text": "\xe9"}\n', "corpus.jsonl:1: not UTF-8 text (byte 0xe9"),
    "null byte": (b'{"_id": "d0", "text": "a"}\n\0\n', "corpus.jsonl:2: a NUL byte"),
    "twice": (b'{"_id": "d0", "text": "a"}\n{"_id": "d0", "text": "b"}\n', "corpus.jsonl:2: the id 'd0' appears twice"),
    "twice, a number": (b'{"_id": "7", "text": "a"}\n{"_id": 7, "text": "b"}\n', ":2: the id '7' appears twice"),
    "no id": (b'{"text": "a"}\n', 'corpus.jsonl:1: "_id" must be a text'),
    "id is a list": (b'{"_id": ["d0"], "text": "a"}\n', 'corpus.jsonl:1: "_id" must be a text'),
    "id is empty": (b'{"_id": "", "text": "a"}\n', 'corpus.jsonl:1: "_id" must be a text that is not empty'),
    "text is null": (b'{"_id": "d0", "text": null}\n', 'corpus.jsonl:1: "text" and "title" must be texts'),
    "text is nested": (b'{"_id": "d0", "text": {"en": "a"}}\n', 'corpus.jsonl:1: "text" and "title" must be texts'),
    "a list": (b'["d0", "a"]\n', "corpus.jsonl:1: not a JSON object"),
    "UTF-16": ('{"_id": "d0"}\n'.encode("utf-16"), "corpus.jsonl is UTF-16 text"),
    "nothing": (b"\n\n", "corpus.jsonl holds no texts"),
    "long id": (json.dumps({"_id": LONG, "text": 1}).encode(), 'corpus.jsonl:1: "text" and "title" must be texts'),
}

QRELS: Cases = {
    "latin": (b"q0\td0\t1\nq\xe9\td0\t1\n", "test.tsv:2: not UTF-8 text (byte 0xe9, column 2)"),
    "null byte": (b"q0\td0\t1\nq1\td\0\t1\n", "test.tsv:2: a NUL byte"),
    "two columns": (b"q0\td0\n", "test.tsv:1: a judgement must be query-id, corpus-id and an integer grade"),
    "five columns": (b"q0 0 d0 1 x\n", "test.tsv:1: a judgement must be"),
    "a decimal": (b"q0\td0\t1\nq1\td1\t0.5\n", "test.tsv:2: a judgement must be"),
    "not a number": (b"q0\td0\t1\nq1\td1\tNaN\n", "test.tsv:2: a judgement must be"),
    "a huge grade": (b"q0\td0\t" + b"9" * 400 + b"\n", "test.tsv:1: a judgement must be"),
    "a huger grade": (b"q0\td0\t" + b"9" * 9000 + b"\n", "test.tsv:1: a judgement must be"),
    "two grades": (b"q0\td0\t1\nq0\td0\t2\n", "test.tsv:2: query 'q0' and document 'd0' have two different grades"),
    "unknown query": (b"q0\td0\t1\nnobody\td0\t1\n", "names queries that are not in queries.jsonl: 'nobody'"),
    "unknown documents": (b"q0\tx\t1\nq0\ty\t1\n", "names documents that are not in corpus.jsonl: 'x' and 1 more"),
    "long unknown id": (b"q0\t" + LONG.encode() + b"\t1\n", "names documents that are not in corpus.jsonl: 'xxx"),
    "a header alone": (b"query-id\tcorpus-id\tscore\n", "test.tsv holds no judgements"),
    "two headers": (b"query-id\tcorpus-id\tscore\nquery-id\tcorpus-id\tscore\n", "test.tsv:2: a judgement must be"),
    "UTF-16": ("q0\td0\t1\n".encode("utf-16"), "test.tsv is UTF-16 text"),
    "JSON": (b'{"q0": {"d0": 1}}\n', "test.tsv:1: a judgement must be"),
}

YAML: Cases = {
    "a list": (b"- 1\n", "bad.yaml: a configuration must consist of lines of the form 'key: value'"),
    "a tab": (b"epochs: 1\n\tseed: 2\n", "bad.yaml:2: not YAML"),
    "open bracket": (b"dims: [1, 2\n", "not YAML"),
    "null byte": (b"seed: 1\0\n", "bad.yaml: not YAML"),
    "latin": (b"query-prompt: caf\xe9\n", "bad.yaml: not YAML"),
    "an escape sequence": (b"query-prompt: \x1b[2J\n", "bad.yaml: not YAML"),
    "object": (b"seed: !!python/object/apply:os.system ['touch owned']\n", "bad.yaml:1: not YAML"),
    "name": (b"seed: !!python/name:os.system\n", "bad.yaml:1: not YAML"),
    "module": (b"query-prompt: !!python/module:os\n", "bad.yaml:1: not YAML"),
    "an alias": (b"seed: &a 1\nepochs: *a\n", "bad.yaml:2: not YAML: aliases (*name) are not allowed"),
    "a bomb": (
        b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (99 + i, 99 + i, b",".join([b"*%c" % (98 + i if i else 97)] * 9)) for i in range(9)
        ),
        "aliases (*name) are not allowed",
    ),
    "deep": (b"seed: " + b"[" * 5_000, "bad.yaml:1: the YAML is nested too deeply to be read"),
    "large": (b"# " + b"x" * 1_100_000, "larger than 1,000,000 bytes"),
    "no such day": (b"seed: 1\nquery-prompt: 2024-02-31\n", "bad.yaml:2: not YAML: day"),
    "bad base 64": (b"query-prompt: !!binary $$$=\n", "bad.yaml:1: "),
    "many digits": (b"seed: " + b"9" * 5000 + b"\n", "bad.yaml:1: "),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "bad.yaml:2: not YAML"),
    "a key twice": (b"seed: 1\nseed: 2\n", "bad.yaml:2: seed is given a second time"),
    "a key twice, two spellings": (b"batch-size: 1\nbatch_size: 2\n", "bad.yaml:2: batch-size is given a second"),
    "a list as key": (b"? [seed]\n: 1\n", "bad.yaml:1: a key must be a word, not a sequence"),
    "unknown": (b"seed: 1\nbath-size: 3\n", "bad.yaml:2: unknown key bath-size; did you mean batch-size?"),
    "a long unknown": (LONG[:900].encode() + b": 1\n", "bad.yaml:1: unknown key xxx"),
    "code": (b"trust-remote-code: maybe\n", "bad.yaml:1: --trust-remote-code must be true or false, not 'maybe'"),
    "text for number": (b"\nepochs: many\n", "bad.yaml:2: --epochs must be a whole number, not 'many'"),
    "infinite": (b"learning-rate: .inf\n", "bad.yaml:1: --learning-rate must be a number, not inf"),
    "a mapping": (b"seed: {a: 1}\n", "bad.yaml:1: --seed must be a whole number"),
    "null": (b"batch-size: null\n", "bad.yaml:1: "),
    "null byte in a path": (b'output-dir: "a\\0b"\n', "bad.yaml:1: --output-dir must be a path"),
    "half a pair": (b'query-prompt: "\\ud800"\n', "bad.yaml:1: --query-prompt must be text"),
    "data set": (b"train-data:\n  - path: a.jsonl\n    weight: -1\n", "bad.yaml:3: weight must be more than 0"),
    "data set without path": (b"train-data:\n  - name: x\n", "bad.yaml:2: path must be given"),
}  # fmt: skip
