"""Evaluation collections as BEIR folders hold them.

The layout comes from BEIR (Thakur et al. 2021): ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from biencoder.data.files.collection import Collection, Qrels
from biencoder.data.files.lines import NotTextError, decode, listed, read_lines, shortened
from biencoder.data.files.mteb_task import is_task, load_task
from biencoder.errors import UserError

__all__ = ["Collection", "Qrels", "load_collection", "read_texts"]

HIGHEST_GRADE = 1_000_000  # gains are summed in floating point


def load_collection(folder: Path, split: str | None = None) -> Collection:
    """Read a BEIR folder (files may be ``.gz``), or a task of MTEB.

    Args:
        folder: holds ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/``; or ``mteb:NAME``.
        split: which judgements to read. None means ``test`` if it exists, else the only split.

    Raises:
        UserError: a file is missing or malformed, an id appears twice, or the judgements name an unknown id; or the
            task cannot be used, see :func:`load_task`.
    """
    if is_task(folder):
        return load_task(folder, split)
    if not folder.is_dir():
        raise UserError(f"the evaluation folder {folder} does not exist or is not a folder")
    corpus_file, query_file = _file(folder, "corpus.jsonl"), _file(folder, "queries.jsonl")
    split, qrels_file = _split_file(folder, split)
    qrels = _read_qrels(qrels_file)
    corpus, queries = read_texts(corpus_file), read_texts(query_file)
    _check_ids(qrels_file, "queries", list(qrels), queries, query_file)
    _check_ids(qrels_file, "documents", [i for grades in qrels.values() for i in grades], corpus, corpus_file)
    queries = {i: text for i, text in queries.items() if i in qrels}
    return Collection(
        list(corpus),
        list(corpus.values()),
        list(queries),
        list(queries.values()),
        {i: qrels[i] for i in queries},
        f"{folder.name} ({split}): {len(queries):,} queries, {len(corpus):,} documents",
    )


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(
        f"the evaluation folder {folder} has no {name} or {name}.gz; "
        "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
    )


def _split_file(folder: Path, split: str | None) -> tuple[str, Path]:
    found = {
        path.name.removesuffix(".gz").removesuffix(".tsv"): path
        for path in sorted((folder / "qrels").glob("*"))
        if path.name.endswith((".tsv", ".tsv.gz"))
    }
    if not found:
        raise UserError(f"the evaluation folder {folder} has no judgements; put them in {folder}/qrels/test.tsv")
    names = ", ".join(found)
    if split is None:
        split = "test" if "test" in found else next(iter(found))
        if split != "test" and len(found) > 1:
            raise UserError(
                f"{folder}/qrels holds the splits {names} but no test; choose one with --eval-split or --split, "
                f"or copy it to {folder}/qrels/test.tsv"
            )
    if split not in found:
        raise UserError(f"{folder}/qrels has no split {split!r}; it has: {names}")
    return split, found[split]


def read_texts(path: Path) -> dict[str, str]:
    """The texts of ``corpus.jsonl`` or ``queries.jsonl`` by their ids.

    Raises:
        UserError: a line is not a JSON object with ``_id`` and ``text``, or an id appears twice.
    """
    texts: dict[str, str] = {}
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        place = f"{path}:{number}"
        row = _parse(line, place)
        key = row.get("_id")
        if type(key) is int:
            key = str(key)
        if type(key) is not str or not key:
            raise UserError(f'{place}: "_id" must be a text that is not empty; found: {listed(list(row))}')
        text, title = row.get("text"), row.get("title") or ""
        if type(text) is not str or type(title) is not str:
            raise UserError(f'{place}: "text" and "title" must be texts; found: {listed(list(row))}')
        if key in texts:
            raise UserError(f"{place}: the id {shortened(key)!r} appears twice")
        texts[key] = f"{title} {text}" if title else text
    if not texts:
        raise UserError(f"{path} holds no texts")
    return texts


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        _decode(line, place)  # raises a clearer error if the line is not text at all
        raise UserError(f"{place}: not JSON ({error.msg}, column {error.colno})") from error
    if type(row) is not dict:
        raise UserError(f"{place}: not a JSON object")
    return row


def _read_qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    for place, query, document, grade in _judgements(path):
        grades = qrels.setdefault(query, {})
        if grades.setdefault(document, grade) != grade:
            pair = f"query {shortened(query)!r} and document {shortened(document)!r}"
            raise UserError(f"{place}: {pair} have two different grades")
    if not qrels:
        raise UserError(f"{path} holds no judgements")
    return qrels


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Place, query, document and grade of each line, which has BEIR's three columns or TREC's four."""
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        text = _decode(line, place).strip()
        if not text:
            continue
        cells = text.split("\t")
        if len(cells) not in (3, 4):
            cells = text.split()
        try:
            query, document, grade = (cells[0], *cells[-2:]) if len(cells) in (3, 4) else ("", "", "")
            yield place, query.strip(), document.strip(), _grade(grade)
        except ValueError as error:
            if number == 1 and len(cells) in (3, 4) and not any(letter.isdigit() for letter in cells[-1]):
                continue  # the header
            raise UserError(
                f"{place}: a judgement must be query-id, corpus-id and an integer grade, separated by tabs; "
                f"found {text[:80]!r}"
            ) from error


def _grade(cell: str) -> int:
    grade = int(cell)
    if abs(grade) > HIGHEST_GRADE:
        raise ValueError
    return grade


def _decode(line: bytes, place: str) -> str:
    try:
        return decode(line)
    except NotTextError as error:
        raise UserError(f"{place}: {error}") from error


def _check_ids(qrels: Path, what: str, judged: list[str], present: dict[str, str], file: Path) -> None:
    absent = [i for i in dict.fromkeys(judged) if i not in present]
    if absent:
        more = f" and {len(absent) - 1:,} more" if len(absent) > 1 else ""
        raise UserError(f"{qrels} names {what} that are not in {file.name}: {shortened(absent[0])!r}{more}")
