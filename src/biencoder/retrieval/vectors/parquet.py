"""Ids, texts and vectors in one Parquet file, as databases and dataframes load them.

Columns: ``id`` and ``text`` (strings), and ``vector`` (a list of equal length in every row).
"""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from biencoder.files import atomic_write
from biencoder.retrieval.texts import read_texts
from biencoder.retrieval.vectors.small import TYPES, shrink_blocks

PARQUET = ".parquet"
ROWS = 8192  # of a row group: what a reader holds at a time


def write_parquet(matrix: Path, texts: Path, output: Path, kind: str) -> dict[str, Any]:
    """Write the rows of a float32 ``.npy`` file beside their texts; the new file appears when it is whole.

    Args:
        matrix: row i is the vector of text i.
        texts: see :func:`~biencoder.retrieval.texts.read_texts`.
        output: the file to write.
        kind: how to store the vectors, see :mod:`biencoder.retrieval.vectors.small`.

    Returns:
        See :attr:`~biencoder.retrieval.vectors.small.Shrunk.needed`.

    Raises:
        UserError: a value is too large for float16.
    """
    shrunk = shrink_blocks(matrix, kind)
    rows = read_texts(texts)
    vector = pa.list_(pa.from_numpy_dtype(TYPES[kind]), shrunk.shape[1])
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", vector)])
    with atomic_write(output, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        for block in shrunk.blocks:
            for start in range(0, len(block), ROWS):
                part = block[start : start + ROWS]
                beside = list(islice(rows, len(part)))
                ids = pa.array([row.id for row in beside], pa.string())
                said = pa.array([row.text for row in beside], pa.string())
                lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(part).ravel()), type=vector)
                writer.write_table(pa.Table.from_arrays([ids, said, lists], schema=schema))
    return shrunk.needed
