"""Options of hard-negative mining and of teacher scores."""

# ruff: noqa: RUF009  (an option is a dataclass field)
from dataclasses import dataclass
from pathlib import Path

from biencoder.config import headings as under
from biencoder.config.options import Config
from biencoder.config.shared import (
    BAD_ROW_HELP,
    DATA_HELP,
    DEVICE_HELP,
    DEVICES,
    MODEL_HELP,
    ON_BAD_ROW,
    PRECISIONS,
    TRUST_HELP,
    EncoderConfig,
)
from biencoder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MiningOptions(Config):
    """Which of the most similar passages become hard negatives: what `biencoder.retrieval.mining.mine.mine` is told."""

    negatives: int = under.negatives("hard negatives mined for each row", default=7, least=1)
    existing: str = under.negatives(
        "keep the hard negatives that a row has, before the mined ones, or replace them",
        default="keep",
        choices=("keep", "replace"),
    )
    depth: int = under.negatives("passages looked at for each query, the most similar ones", default=100, least=1)
    skip_top: int = under.negatives(
        "of these, the N most similar ones that are no known positives are left out", default=0, least=0
    )
    max_share: float = under.negatives(
        "a negative scores below this share of its row's lowest positive score; above 1, beyond the positive",
        default=0.95,
        above=0,
    )
    margin: float | None = under.negatives(
        "a negative scores below its row's lowest positive score less this", default=None, unset="no margin"
    )
    max_score: float | None = under.negatives("a negative scores below this", default=None, unset="no ceiling")
    choice: str = under.negatives(
        "which of the passages that are left: the most similar ones, or random ones",
        default="top",
        choices=("top", "random"),
    )
    reranker_margin: float = under.negatives(
        "with --reranker: a negative's logit is below the lowest one of its row's positives less this", default=1.0
    )
    seed: int = under.running("whole number that decides a random choice", default=42, least=0)

    def check(self) -> None:
        """Refuse a depth in which there is no room for the negatives."""
        if self.depth < self.skip_top + self.negatives:
            raise UserError(
                f"--depth {self.depth}: leaves no room for --negatives {self.negatives} after --skip-top "
                f"{self.skip_top}; use {self.skip_top + self.negatives} at least, better several times as much"
            )


@dataclass(frozen=True, kw_only=True)
class MineConfig(MiningOptions, EncoderConfig):
    """`biencoder mine`, and the argument of `biencoder.mine_hard_negatives`."""

    train_data: tuple[Path, ...] = under.needed(f"training data: {DATA_HELP}", metavar="FILE")
    output: Path = under.needed("the rows with their hard negatives, .jsonl or .jsonl.gz", metavar="FILE")
    corpus: Path | None = under.texts(
        "passages to find negatives among: a line each, or JSON lines with 'text' (and 'title'), or a BEIR folder",
        default=None,
        unset="the positives and hard negatives of the training data",
        metavar="FILE",
    )
    reranker: str | None = under.negatives(
        "cross-encoder, a folder or its name on the hub, which throws out what it scores like a positive",
        default=None,
        unset="none",
        metavar="MODEL",
    )
    on_bad_row: str = under.running(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """`biencoder score`."""

    train_data: tuple[Path, ...] = under.needed(f"training data: {DATA_HELP}", metavar="FILE")
    output: Path = under.needed("the rows with the teacher's scores, .jsonl or .jsonl.gz", metavar="FILE")
    reranker: str | None = under.model(
        "the teacher: a cross-encoder with one label, a folder or its name on the hub",
        default=None,
        unset="--model",
        metavar="MODEL",
    )
    model: str | None = under.model(
        f"the teacher: an embedding model; {MODEL_HELP}", default=None, unset="--reranker", metavar="MODEL"
    )
    teacher_temperature: float | None = under.model(
        "divides the teacher's scores; smaller is more decided",
        default=None,
        unset="1 for logits and inner products, 0.05 for cosines",
        above=0,
    )
    max_length: int | None = under.model(
        "longest text in tokens, for a cross-encoder longest pair; the rest is cut off",
        default=None,
        unset="what the model says",
        least=3,
    )
    trust_remote_code: bool = under.model(TRUST_HELP, default=False)
    precision: str = under.running(
        "arithmetic of the model; auto: bf16 where the processor has it, else fp32", default="fp32", choices=PRECISIONS
    )
    device: str = under.running(DEVICE_HELP, default="auto", choices=DEVICES)
    on_bad_row: str = under.running(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)

    def check(self) -> None:
        """Refuse none and both of the two kinds of teacher."""
        if (self.reranker is None) == (self.model is None):
            raise UserError("give one teacher: --reranker CROSS-ENCODER or --model EMBEDDING-MODEL")
