"""Retrieval tasks of MTEB as collections, so that nDCG@10 is the figure that MTEB reports (Muennighoff et al. 2023)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biencoder.data.files.collection import Collection
from biencoder.data.files.hub_copy import usual_split
from biencoder.data.files.lines import listed, shortened
from biencoder.errors import UserError, first_line, require_package

MTEB = "mteb:"
USUAL_SPLIT = "test"


def is_task(folder: Path) -> bool:
    """Whether a path names a task of MTEB and no folder."""
    return str(folder).startswith(MTEB)


def load_task(address: Path, split: str | None = None) -> Collection:
    """Read a task; its data come from the Hugging Face Hub, or from the cache of ``datasets``.

    Args:
        address: ``mteb:NAME``, or ``mteb:NAME:SUBSET`` for a task with data in several languages.
        split: which queries and judgements to read. None means ``test`` if it exists, else the only split.

    Raises:
        UserError: the package is not installed, there is no such task, subset or split, the task is not about texts
            that are ranked among all documents, or its data cannot be loaded.
    """
    require_package("mteb", str(address), "mteb")
    name, _, subset = str(address).removeprefix(MTEB).partition(":")
    task = _task(address, name)
    subset = _chosen(address, "subset", list(task.hf_subsets), subset or None, "default")
    split = _chosen(address, "split", list(task.eval_splits), split, USUAL_SPLIT)
    task = task.filter_languages(None, hf_subsets=[subset]).filter_eval_splits([split])
    try:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(None)
    except Exception as error:  # of the code of any task, of any reader of files, or of the network
        raise UserError(f"{address}: its data cannot be loaded ({first_line(error)})") from error
    return _collection(address, task, subset, split)


def _task(address: Path, name: str) -> Any:
    import mteb
    from mteb.abstasks import AbsTaskRetrieval

    try:
        task = mteb.get_task(name)
    except KeyError as error:  # whose message names the nearest task
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise UserError(f"{address}: MTEB has no such task: {said}") from error
    metadata = task.metadata
    if not isinstance(task, AbsTaskRetrieval) or metadata.type != "Retrieval" or list(metadata.modalities) != ["text"]:
        raise UserError(
            f"{address}: is a task of the type {metadata.type} on {' and '.join(metadata.modalities)}; biencoder "
            "measures the retrieval of texts"
        )
    return task


def _chosen(address: Path, what: str, names: Sequence[str], asked: str | None, usual: str) -> str:
    asked = usual_split(names, usual) if asked is None else asked
    if asked is None:
        raise UserError(f"{address}: has several {what}s; name one of them: {listed(names)}")
    if asked not in names:
        raise UserError(f"{address}: has no {what} {asked}; it has: {listed(names)}")
    return asked


def _collection(address: Path, task: Any, subset: str, split: str) -> Collection:
    data = task.dataset[subset][split]
    corpus, queries, judged = data["corpus"], data["queries"], data["relevant_docs"]
    queries = {query: text for query, text in zip(queries["id"], queries["text"], strict=True) if judged.get(query)}
    if data.get("top_ranked") or "instruction" in data["queries"].column_names or task.skip_first_result:
        raise UserError(f"{address}: ranks given documents, or by instructions; biencoder searches all documents")
    qrels = {query: {str(i): int(grade) for i, grade in judged[query].items()} for query in queries}
    ids, texts = list(corpus["id"]), _texts(corpus)
    known = set(ids)
    missing = [i for grades in qrels.values() for i in grades if i not in known]
    if missing or len(known) < len(ids):
        what = (
            f"judges documents that its corpus lacks, such as {shortened(missing[0])}" if missing else "repeats an id"
        )
        raise UserError(f"{address}: the task {what}, so biencoder cannot give MTEB's figure")
    named = task.metadata.name if subset == "default" else f"{task.metadata.name}, {subset}"
    return Collection(
        ids,
        texts,
        list(queries),
        list(queries.values()),
        qrels,
        f"{named} ({split}) of MTEB: {len(queries):,} queries, {len(ids):,} documents",
        ignores_itself=task.ignore_identical_ids,
    )


def _texts(corpus: Any) -> list[str]:
    """Title and text joined as MTEB joins them: stripped, unlike those of a BEIR folder."""
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    return [f"{title or ''} {text}".strip() for title, text in zip(titles, corpus["text"], strict=True)]
