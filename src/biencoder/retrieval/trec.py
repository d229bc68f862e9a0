"""TREC run files."""

from pathlib import Path

from biencoder.errors import UserError
from biencoder.files import atomic_write
from biencoder.retrieval.metrics import Run, ranking


def write_trec_run(path: Path, found: Run, *, tag: str = "biencoder") -> None:
    """Write a TREC run (``query Q0 document rank score tag``), ranked as trec_eval ranks it, whole or not at all.

    Raises:
        UserError: an id is empty or holds white space; in this format white space ends a column.
    """
    tag = "_".join(tag.split()) or "biencoder"
    with atomic_write(path) as file:
        for query, scores in found.items():
            for rank, document in enumerate(ranking(scores), 1):
                for identifier in (query, document):
                    if len(identifier.split()) != 1 or identifier.strip() != identifier:
                        raise UserError(
                            f"{path}: id {identifier!r} contains white space, and a TREC run cannot hold that"
                        )
                file.write(f"{query} Q0 {document} {rank} {scores[document]:.9g} {tag}\n")
