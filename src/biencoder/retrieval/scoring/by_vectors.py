"""Teacher scores from an embedding model. It encodes each distinct passage once; a score is an inner product.

The vectors of the passages stay beside the output until it is complete, so that a killed run can continue with them.
"""

from functools import partial

import numpy as np
import orjson

from biencoder.config import ScoreConfig
from biencoder.config.choices import DENSE, SPARSE
from biencoder.data.rewrite import as_line, same_rows, write_lines
from biencoder.data.table import ExampleTable
from biencoder.data.table_parts import Parts
from biencoder.distributed import read_once_a_host
from biencoder.files import atomic_write, beside
from biencoder.model.encoder import Encoder
from biencoder.model.parallel.sharing import is_first, told
from biencoder.model.representations.ragged import Vectors
from biencoder.retrieval.encode import encode_file
from biencoder.retrieval.mining.corpus import Candidates, gather
from biencoder.retrieval.mining.queries import Queries, Scores, encode_queries, similarities
from biencoder.retrieval.scoring.scored_rows import Scored, with_scores
from biencoder.retrieval.text_encoder import StartProgress, TextEncoder
from biencoder.retrieval.vectors.csr import CSR
from biencoder.retrieval.vectors.stored import lengths_of, open_vectors

QUERIES_AT_ONCE = 4096
COSINE_TEMPERATURE = 0.05  # the student's own default


def score_file_by_vectors(config: ScoreConfig, *, progress: StartProgress | None = None) -> Scored:
    """Score every positive and negative against its query with ``config.model``, and write ``config.output``.

    Args:
        config: the options of `biencoder score`.
        progress: called once with the number of distinct passages and the number that an earlier run has encoded.

    Raises:
        UserError: the model cannot be used, a vector is not finite, or a file changed meanwhile.
    """
    assert config.model is not None
    read = partial(ExampleTable.from_files, config.train_data, config.on_bad_row)
    table = read_once_a_host(read, Parts.of([config.train_data], config.on_bad_row, None))
    encoder = Encoder.load(
        config.model,
        precision=config.precision,
        device=config.device,
        max_length=config.max_length,
        head=config.head,
        trust_remote_code=config.trust_remote_code,
    )
    is_scaled = encoder.settings.normalize or encoder.kind == SPARSE
    temperature = config.teacher_temperature or (COSINE_TEMPERATURE if is_scaled else 1.0)
    passages = gather(table, None, with_negatives=True)
    # The files are hidden, because biencoder reads no hidden file of a training-data folder.
    texts = config.output.with_name(f".{config.output.name}.passages.jsonl")
    suffix = CSR if encoder.kind == SPARSE else ".npy"
    matrix = config.output.with_name(f".{config.output.name}.passages{suffix}")
    if is_first():
        with atomic_write(texts, "wb") as file:
            for number in range(len(passages)):
                file.write(orjson.dumps({"text": passages[number]}) + b"\n")
    told(None)  # all ranks read it
    encoded = encode_file(encoder, texts, matrix, progress=progress)
    vectors = open_vectors(matrix, like=None if encoder.kind == DENSE else encoder.no_texts)
    positives, negatives = (part / np.float32(temperature) for part in score_table(encoder, table, passages, vectors))
    if is_first():
        _write(config, table, positives, negatives)
        for path in (texts, matrix, beside(matrix, ".json"), lengths_of(matrix)):
            path.unlink(missing_ok=True)
    return Scored(len(table), len(positives) + len(negatives), encoded.reused)


def score_table(
    encoder: TextEncoder, table: ExampleTable, passages: Candidates, vectors: Vectors
) -> tuple[Scores, Scores]:
    """Similarities in the order of ``table.positive_hashes.values`` and of ``table.negative_hashes.values``.

    Args:
        encoder: encodes each distinct query once, with its row's own prompt or else the model's.
        table: the rows.
        passages: all of the table's passages, by number.
        vectors: their vectors.
    """
    queries = Queries.of(passages.table.prompted_query)
    sides = ((table.positive_hashes, passages.positives), (table.negative_hashes, passages.negatives))
    scores = (np.empty(len(passages.positives), np.float32), np.empty(len(passages.negatives), np.float32))
    for start, stop, rows in queries.blocks(QUERIES_AT_ONCE):
        asked = encode_queries(encoder, table, queries.first[start:stop])
        for (texts, numbers), found in zip(sides, scores, strict=True):
            places, offsets = texts.positions(rows)
            owners = np.repeat(queries.number[rows] - start, np.diff(offsets))
            found[places] = similarities(asked, owners, vectors, numbers[places])
    return scores


def _write(config: ScoreConfig, table: ExampleTable, positives: Scores, negatives: Scores) -> None:
    sides = ((table.positive_hashes, positives), (table.negative_hashes, negatives))
    with write_lines(config.output) as write:
        for number, (place, row, example) in enumerate(same_rows(table, config.train_data, config.on_bad_row)):
            scores = [found[texts.offsets[number] : texts.offsets[number + 1]] for texts, found in sides]
            write(as_line(with_scores(row, example, np.concatenate(scores)), place))
