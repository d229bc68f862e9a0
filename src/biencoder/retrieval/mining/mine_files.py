"""Write training files again, with hard negatives."""

import logging
from functools import partial
from pathlib import Path

from biencoder.config import MineConfig
from biencoder.data.files.columns import find_columns
from biencoder.data.files.formats import Row
from biencoder.data.rewrite import DECIMALS, as_line, check_output, same_rows, write_lines
from biencoder.data.table import ExampleTable
from biencoder.data.table_parts import Parts
from biencoder.distributed import read_once_a_host
from biencoder.errors import UserError
from biencoder.model.cross_encoder import CrossEncoder
from biencoder.model.encoder import load_encoder
from biencoder.model.parallel.sharing import is_first
from biencoder.retrieval.mining.mine import Mined, PairScorer, mine
from biencoder.retrieval.text_encoder import StartProgress, TextEncoder
from biencoder.retrieval.texts import read_texts

logger = logging.getLogger(__name__)


def mine_hard_negatives(
    config: MineConfig, encoder: TextEncoder | None = None, *, progress: StartProgress | None = None
) -> Mined:
    """Mine hard negatives and write ``config.output``: the same rows in order, with ``neg`` and ``neg_scores``.

    The output appears when it is complete; of several ranks, the first writes it. ``neg_scores`` are the model's
    similarities for every negative of the row. A teacher's ``pos_scores`` do not fit them and are left out.

    Args:
        config: the options of `biencoder mine`.
        encoder: the model, if it is loaded already; None to load ``config.model``.
        progress: as for :func:`~biencoder.retrieval.encode.encode_file`.

    Raises:
        UserError: a file or model cannot be used, or the output is also an input.
    """
    corpus = None if config.corpus is None else _corpus_file(config.corpus)
    check_output(config.output, config.train_data, corpus)
    if corpus is not None:
        next(read_texts(corpus), None)  # a missing file is reported before the model is loaded
    read = partial(ExampleTable.from_files, config.train_data, config.on_bad_row)
    table = read_once_a_host(read, Parts.of([config.train_data], config.on_bad_row, None))
    reranker = _load_reranker(config)
    mined = mine(
        load_encoder(config) if encoder is None else encoder,
        table,
        config,
        None if corpus is None else (row.text for row in read_texts(corpus)),
        reranker=reranker,
        progress=progress,
    )
    if is_first():
        _write(config, mined)
    return mined


def with_negatives(row: Row, negatives: list[tuple[str, float]]) -> Row:
    """The row with new ``neg`` and ``neg_scores``, without its old negatives and any teacher's scores."""
    columns = find_columns(tuple(row))
    stale = {*columns.negatives, columns.positive_scores} - {"neg"}
    texts, scores = [text for text, _ in negatives], [round(score, DECIMALS) for _, score in negatives]
    return {name: value for name, value in row.items() if name not in stale} | {"neg": texts, "neg_scores": scores}


def _corpus_file(path: Path) -> Path:
    """The file of passages; for a BEIR folder, its corpus file."""
    if not path.is_dir():
        return path
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"--corpus {path}: the folder has no corpus.jsonl or corpus.jsonl.gz; name a file of texts")


def _load_reranker(config: MineConfig) -> PairScorer | None:
    if config.reranker is None:
        return None
    return CrossEncoder.load(
        config.reranker,
        precision=config.precision,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )


def _write(config: MineConfig, mined: Mined) -> None:
    taught = 0
    with write_lines(config.output) as write:
        for number, (place, row, example) in enumerate(same_rows(mined.table, config.train_data, config.on_bad_row)):
            taught += example.positive_scores is not None
            write(as_line(with_negatives(row, mined.negatives(number, example)), place))
    if taught:
        logger.info(
            "pos_scores of %s rows are left out, because the new neg_scores are from another teacher "
            "(biencoder score writes both)",
            f"{taught:,}",
        )
