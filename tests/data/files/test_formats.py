import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import row, write, write_jsonl

from biencoder.data.files.formats import find_files
from biencoder.data.files.records import BadRows, iter_examples
from biencoder.data.table import ExampleTable
from biencoder.errors import UserError

# The same three examples for every format: ragged negatives, a line break, quotes, letters beyond ASCII.
TRIPLES = [
    ("what is a cat?", "an animal, furred", ["a car", "a cart"]),
    ('who said "hello"?', 'two lines:\n"hello" and «bye»', []),
    ("naïve 問い", "réponse 🐈", ["[1] a bracket, no list"]),
]


def examples(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(e.query, e.positives, e.negatives) for _, e in iter_examples(find_files([path]), **options)]


WANTED = [(query, (positive,), tuple(negatives)) for query, positive, negatives in TRIPLES]


def padded(texts: list[str]) -> list[str | None]:
    return [*texts, None, None][:2]


def as_parquet(path: Path, *, lists: bool) -> Path:
    if lists:
        columns: dict[str, Any] = {
            "query": [q for q, _, _ in TRIPLES],
            "pos": [[p] for _, p, _ in TRIPLES],
            "neg": [n for _, _, n in TRIPLES],
            "unused": [1, 2, 3],
        }
    else:
        columns = {
            "anchor": [q for q, _, _ in TRIPLES],
            "positive": [p for _, p, _ in TRIPLES],
            "negative_1": [padded(n)[0] for _, _, n in TRIPLES],
            "negative_2": [padded(n)[1] for _, _, n in TRIPLES],
        }
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def as_saved_by_datasets(folder: Path, **state: Any) -> Path:
    """The files that ``save_to_disk`` of datasets 4 writes: batches of Arrow in a stream, and what names them."""
    folder.mkdir(parents=True)
    rows = pa.table(
        {"query": [q for q, _, _ in TRIPLES], "pos": [p for _, p, _ in TRIPLES], "neg": [n for *_, n in TRIPLES]}
    )
    files = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, part in zip(files, (rows.slice(0, 2), rows.slice(2)), strict=True):
        with pa.ipc.new_stream(folder / name, rows.schema) as stream:
            stream.write_table(part)
    found: dict[str, Any] = {"_data_files": [{"filename": name} for name in files], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(found | state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    folder = as_saved_by_datasets(tmp_path / "both" / "train")
    assert examples(folder) == WANTED
    assert ExampleTable.from_files([folder]).location(2) == f"{folder / 'data-00001-of-00002.arrow'}:1"


def test_a_folder_of_datasets_with_several_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"query": q, "pos": p, "neg": n} for q, p, n in TRIPLES])
    for names in (["train", "test"], ["test"]):
        datasets.DatasetDict(dict.fromkeys(names, rows)).save_to_disk(tmp_path / names[0])
        assert examples(tmp_path / names[0]) == WANTED
    rows.select([1]).save_to_disk(tmp_path / "one")
    assert examples(tmp_path / "one") == WANTED[1:2]
    datasets.DatasetDict({"dev": rows, "test": rows}).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match=r"none: holds the splits dev, test; name one of them, such as .*none/dev"):
        examples(tmp_path / "none")
    (tmp_path / "none" / "dataset_dict.json").write_text(json.dumps({"splits": ["../train"]}))
    with pytest.raises(UserError, match=r"holds the splits \.\./train"):
        examples(tmp_path / "none")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"_data_files": [{"filename": "../x.arrow"}]},
            r"state\.json: names \.\./x\.arrow, which is not in the folder",
        ),
        ({"_data_files": [{"filename": "x.arrow"}]}, r"state\.json: names x\.arrow, which is not in the folder"),
        ({"_data_files": None}, r"state\.json: is damaged"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, r"call flatten_indices\(\)"),
    ],
)
def test_a_broken_folder_of_datasets(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        examples(as_saved_by_datasets(tmp_path / "saved", **state))


def test_half_an_arrow_file(tmp_path: Path) -> None:
    folder = as_saved_by_datasets(tmp_path / "saved")
    file = folder / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="not a complete Arrow file"):
        examples(folder)


def as_csv(path: Path, line_end: str = "\n") -> Path:
    def quoted(text: str | None) -> str:
        return "" if text is None else '"' + text.replace('"', '""') + '"'

    lines = ["question,answer,negative_1,negative_2"]
    lines += [",".join(map(quoted, [q, p, *padded(n)])) for q, p, n in TRIPLES]
    return write(path, line_end.join(lines) + line_end)


def as_csv_with_lists(path: Path) -> Path:
    return write(
        path,
        "query,pos,neg\n"
        'what is a cat?,"an animal, furred","[""a car"", ""a cart""]"\n'
        '"who said ""hello""?","two lines:\n""hello"" and «bye»",\n'
        'naïve 問い,"[""réponse 🐈""]","[1] a bracket, no list"\n',
    )


def as_jsonl(path: Path) -> Path:
    return write_jsonl(path, [{"query": q, "pos": [p], "neg": n} for q, p, n in TRIPLES])


def as_triplets(path: Path) -> Path:
    rows = [{"anchor": q, "positive": p, "negative_1": padded(n)[0], "negative_2": padded(n)[1]} for q, p, n in TRIPLES]
    return write_jsonl(path, rows)


def test_every_format_gives_the_same_examples_and_fingerprint(tmp_path: Path) -> None:
    files = [
        as_jsonl(tmp_path / "a.jsonl"),
        as_jsonl(tmp_path / "a.jsonl.gz"),
        as_jsonl(tmp_path / "a.json"),
        as_triplets(tmp_path / "b.jsonl"),
        as_csv(tmp_path / "a.csv"),
        as_csv(tmp_path / "a.csv.gz"),
        as_csv_with_lists(tmp_path / "b.csv"),
        as_parquet(tmp_path / "a.parquet", lists=True),
        as_parquet(tmp_path / "b.parquet", lists=False),
    ]
    for path in files:
        assert examples(path) == WANTED, path
    assert len({ExampleTable.from_files([path]).fingerprint for path in files}) == 1


def test_crlf_and_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    raw = as_jsonl(tmp_path / "a.jsonl").read_bytes()
    assert examples(write(tmp_path / "b.jsonl", b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))) == WANTED
    csv = as_csv(tmp_path / "a.csv", line_end="\r\n").read_bytes()
    assert examples(write(tmp_path / "b.csv", b"\xef\xbb\xbf" + csv)) == WANTED


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\n{"query": "q", "pos": "p"}\n  \n{"query": "r", "pos": "s"}\n\n')
    assert [place for place, _ in iter_examples([path])] == [f"{path}:2", f"{path}:4"]


def test_places_are_lines_in_csv_and_rows_in_parquet(tmp_path: Path) -> None:
    csv, parquet = as_csv(tmp_path / "a.csv"), as_parquet(tmp_path / "a.parquet", lists=True)
    assert [place for place, _ in iter_examples([csv, parquet])] == [
        f"{csv}:2",
        f"{csv}:3",
        f"{csv}:5",  # the row before runs over two lines
        f"{parquet}:1",
        f"{parquet}:2",
        f"{parquet}:3",
    ]


def test_long_csv_cells_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "query,pos\nq," + "long " * 100_000 + "\n")
    assert len(examples(path)[0][1][0]) == 500_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("query,pos\na,b\nc,d,e\n", r":3: has 3 cells, but the header has 2"),
        ('query,pos\na,b\n"open,d\n', r":3: not CSV"),
        ("query,pos\na,b\n,d\n", r":3: query must be a text; found null"),
        ("query,pos\na,b\nc,\n", r":3: pos holds no positive"),
        (b"query,pos\na,b\nc,\xff\n", r":3: not UTF-8 text \(byte 0xff, column 3\)"),
        ("one,two\na,b\n", r":2: no query and no positive column; found: one, two; known names: query/anchor/question"),
        ("query,pos\n", "holds no rows"),
        ("query,pos,pos_scores\nq,p,high\n", r":2: pos_scores must be a finite number"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes | str, reason: str) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(UserError, match=r"a\.csv.*" + reason):
        examples(path)


def test_skipping_goes_on_after_a_bad_csv_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'query,pos\na,b\nc,d,e\nf,\xff\n"g"x,h\ni,j\n')
    bad = BadRows()
    assert [q for q, _, _ in examples(path, on_bad_row="skip", bad=bad)] == ["a", "i"]
    assert bad.kinds == {"not CSV": 2, "not UTF-8": 1}


def test_csv_scores_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'query,pos,neg,pos_scores,neg_scores\nq,p,"[""m"",""n""]",0.5,"[0.25, 1]"\n')
    [(_, example)] = iter_examples([path])
    assert (example.positive_scores, example.negative_scores) == ((0.5,), (0.25, 1.0))


def test_a_parquet_file_with_other_columns_stops_even_when_rows_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    with pytest.raises(UserError, match=r"a\.parquet: no query and no positive column; found: text, label;"):
        examples(path, on_bad_row="skip")


def test_parquet_that_is_cut_off(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "a.parquet", lists=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet: not a complete Parquet file"):
        examples(path)


def test_parquet_texts_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"query": broken, "pos": ["p", "p"]}), path)
    with pytest.raises(UserError, match=r"a\.parquet: .*not UTF-8"):
        examples(path)


def test_parquet_values_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["q", "q"], "pos": [[1], [2]]}), path)
    with pytest.raises(UserError, match=r"a\.parquet:1: pos must hold texts only; found a number"):
        examples(path)


def test_a_folder_stands_for_its_supported_files_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.csv.gz", "a.jsonl.gz", ".hidden.jsonl", "notes.txt", "README.md"):
        write(tmp_path / "data" / name, b"")
    write(tmp_path / "data" / "deeper" / "z.jsonl", b"")
    single = write(tmp_path / "z.JSON", b"")
    found = find_files([single, tmp_path / "data"])
    assert [path.name for path in found] == ["z.JSON", "a.jsonl.gz", "a.parquet", "b.jsonl", "c.csv.gz"]


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl does not exist"):
        find_files([tmp_path / "absent.jsonl"])
    with pytest.raises(UserError, match=r"notes\.txt: biencoder does not read this kind of file; it reads: \.jsonl"):
        find_files([write(tmp_path / "notes.txt", b"")])
    with pytest.raises(UserError, match=r"biencoder does not read this kind of file"):
        find_files([write(tmp_path / "a.parquet.gz", b"")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no training data"):
        find_files([tmp_path / "empty"])


def test_extra_columns_are_ignored(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row("q", "p", type="normal", id=7, meta={"a": [1]})])
    assert examples(path) == [("q", ("p",), ())]
