"""``biencoder score``: adds a teacher's scores to training files."""

from biencoder.config import ScoreConfig
from biencoder.data.rewrite import check_output
from biencoder.distributed import shares_work
from biencoder.model.cross_encoder import CrossEncoder
from biencoder.retrieval.scoring.by_cross_encoder import score_file
from biencoder.retrieval.scoring.by_vectors import score_file_by_vectors
from biencoder.retrieval.scoring.scored_rows import Scored, summarize_rows
from biencoder.retrieval.text_encoder import StartProgress
from biencoder.terminal import progress_line, say


@shares_work
def run(config: ScoreConfig) -> None:
    """The command: score, write the rows, say how many."""
    check_output(config.output, config.train_data)
    with progress_line("score") as progress:
        by_teacher = score_file_by_vectors if config.reranker is None else _score_by_cross_encoder
        scored = by_teacher(config, progress=progress)
    say(f"{config.output}: {scored.rows:,} rows with the scores of {scored.pairs:,} pairs")


def _score_by_cross_encoder(config: ScoreConfig, *, progress: StartProgress | None = None) -> Scored:
    assert config.reranker is not None
    source = summarize_rows(config.train_data, config.on_bad_row)  # bad rows are reported before a model is loaded
    teacher = CrossEncoder.load(
        config.reranker,
        precision=config.precision,
        device=config.device,
        max_length=config.max_length,
        trust_remote_code=config.trust_remote_code,
    )
    return score_file(teacher, config, source, progress=progress)
