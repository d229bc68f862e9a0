"""Which passages a run evaluates on, kept in its output folder.

The base model chose them, and another device may round its vectors otherwise. So a resumed run chooses none itself.
"""

import json
from pathlib import Path

from biencoder.data.evaluation.held_out import KeptCorpus
from biencoder.data.files.beir import Collection
from biencoder.files import atomic_write


def keep_corpus(folder: Path, collection: Collection) -> None:
    """Write which passages the held-out queries are searched in."""
    with atomic_write(_file(folder)) as file:
        json.dump(KeptCorpus(collection.corpus_ids, collection.description)._asdict(), file, ensure_ascii=False)


def kept_corpus(folder: Path) -> KeptCorpus | None:
    """What :func:`keep_corpus` wrote; None if there is no such file, or if it is damaged."""
    try:
        return KeptCorpus(**json.loads(_file(folder).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _file(folder: Path) -> Path:
    return folder / "batches" / "evaluation.json"
