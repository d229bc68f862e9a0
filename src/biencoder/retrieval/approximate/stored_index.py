"""An index beside the matrix that it is of: made once, tuned on the texts themselves, and read again."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from biencoder.errors import first_line
from biencoder.files import atomic_write, beside, read_json, write_json
from biencoder.model.representations.ragged import Ragged, Vectors
from biencoder.retrieval.approximate.inverted_file import InvertedFile, build
from biencoder.retrieval.approximate.tuned_index import TunedIndex, sample, tuned

logger = logging.getLogger(__name__)

NEIGHBOURS = 10
QUERY_VECTORS = 16  # of such a text's vectors, where a text has several


def open_index(matrix: Path, vectors: Vectors, source: dict[str, Any]) -> TunedIndex:
    """The index beside a matrix; it is made if it is not there, or belongs to another matrix.

    A kill leaves no index, and the next search makes it.

    Args:
        matrix: file of the vectors.
        vectors: what is in it, float32 or float16.
        source: what the matrix was made from; it names the vectors.
    """
    import faiss

    path, record = beside(matrix, ".index"), beside(matrix, ".index.json")
    known = read_json(record) or {}
    if known.get("source") == source and path.is_file():
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            return TunedIndex(InvertedFile(index, vectors), int(known["probes"]), float(known["recall"]))
        except RuntimeError as error:
            logger.warning("%s cannot be read and is made again: %s", path, first_line(error))
    logger.info("%s: making an index, once", path)
    made = _tuned(build(vectors))
    record.unlink(missing_ok=True)
    with atomic_write(path, "wb") as file:
        writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
        faiss.write_index(made.inverted_file.index, writer)
    write_json(record, {"source": source, "probes": made.probes, "recall": made.recall})
    return made


def _tuned(file: InvertedFile) -> TunedIndex:
    """The index with as many probes as it needs to find nearly all of some texts' neighbours."""
    texts = sample(len(file.vectors))
    queries = file.vectors[texts]
    if isinstance(queries, Ragged):
        few = [queries[n : n + 1].vectors[:QUERY_VECTORS] for n in range(len(queries))]
        starts = np.concatenate([[0], np.cumsum([len(each) for each in few])])
        queries = queries.with_rows(np.concatenate(few), starts)
    return tuned(file, queries, texts.tolist(), NEIGHBOURS + 1)
