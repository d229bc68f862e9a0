"""Options of hard-negative mining and of teacher scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from biencoder.config.choices import AUTO, EXISTING, FP32, KEEP, SELECTIONS, STOP, TOP
from biencoder.config.headings import INPUT, MODEL, NEGATIVES, REQUIRED, RUNNING
from biencoder.config.options import Config, Option
from biencoder.config.shared import (
    A_MODEL,
    AS_THE_MODEL_SAYS,
    Device,
    EncoderConfig,
    OnBadRow,
    OneHead,
    Precision,
    TrainData,
    TrustRemoteCode,
)
from biencoder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MiningOptions(Config):
    """Which of the most similar passages become hard negatives: the options of `retrieval.mining.mine.mine`."""

    negatives: Annotated[int, Option("hard negatives to mine for each row", NEGATIVES, least=1)] = 7
    existing: Annotated[
        str,
        Option(
            "keep the hard negatives that a row already has and put the mined ones after them, or replace them",
            NEGATIVES,
            choices=EXISTING,
        ),
    ] = KEEP
    depth: Annotated[
        int, Option("how many of the most similar passages to consider for each query", NEGATIVES, least=1)
    ] = 100
    exact_up_to: Annotated[
        int,
        Option(
            "search exactly among up to N passages; among more, an index names candidates, and the log says how many "
            "of the right ones",
            NEGATIVES,
            least=1,
        ),
    ] = 250_000
    skip_top: Annotated[
        int, Option("leave out the N most similar passages that are not known positives", NEGATIVES, least=0)
    ] = 0
    max_share: Annotated[
        float,
        Option(
            "a negative must score below this share of the lowest score among its row's positives; above 1, negatives "
            "may score higher than the positive",
            NEGATIVES,
            above=0,
        ),
    ] = 0.95
    margin: Annotated[
        float | None,
        Option(
            "a negative must score more than this below the lowest score among its row's positives",
            NEGATIVES,
            unset="no margin",
        ),
    ] = None
    max_score: Annotated[float | None, Option("a negative must score below this", NEGATIVES, unset="no limit")] = None
    choice: Annotated[
        str,
        Option(
            "which of the remaining passages to take: the most similar ones, or random ones",
            NEGATIVES,
            choices=SELECTIONS,
        ),
    ] = TOP
    reranker_margin: Annotated[
        float,
        Option(
            "with --reranker: a negative's logit must be more than this below the lowest logit among its row's "
            "positives",
            NEGATIVES,
        ),
    ] = 1.0
    seed: Annotated[int, Option("random seed for --choice random", RUNNING, least=0)] = 42

    def check(self) -> None:
        """Refuse a depth that has no room for the negatives."""
        least = self.skip_top + self.negatives
        if self.depth < least:
            raise UserError(
                f"--depth {self.depth} leaves no room for --negatives {self.negatives} after --skip-top "
                f"{self.skip_top}; use at least {least}, or better several times as much"
            )


@dataclass(frozen=True, kw_only=True)
class MineConfig(MiningOptions, EncoderConfig):
    """`biencoder mine`, and the argument of `biencoder.mine_hard_negatives`."""

    train_data: TrainData
    output: Annotated[
        Path, Option("file for the rows with their hard negatives, .jsonl or .jsonl.gz", REQUIRED, metavar="FILE")
    ]
    corpus: Annotated[
        Path | None,
        Option(
            "passages to choose negatives from: one per line, JSON Lines with 'text' (and 'title'), or a BEIR folder",
            INPUT,
            unset="the positives and hard negatives of the training data",
            metavar="FILE",
        ),
    ] = None
    reranker: Annotated[
        str | None,
        Option(
            f"cross-encoder that rejects passages which it scores like a positive: {A_MODEL}",
            NEGATIVES,
            unset="none",
            metavar="MODEL",
        ),
    ] = None
    on_bad_row: OnBadRow = STOP


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """`biencoder score`."""

    train_data: TrainData
    output: Annotated[
        Path, Option("file for the rows with the teacher's scores, .jsonl or .jsonl.gz", REQUIRED, metavar="FILE")
    ]
    reranker: Annotated[
        str | None,
        Option(
            f"teacher that is a cross-encoder with one label: {A_MODEL}", MODEL, unset="use --model", metavar="MODEL"
        ),
    ] = None
    model: Annotated[
        str | None,
        Option(f"teacher that is an embedding model: {A_MODEL}", MODEL, unset="use --reranker", metavar="MODEL"),
    ] = None
    head: OneHead = None
    teacher_temperature: Annotated[
        float | None,
        Option(
            "number that divides the teacher's scores; a smaller number sharpens them",
            MODEL,
            unset="1 for logits and inner products, 0.05 for cosines",
            above=0,
        ),
    ] = None
    max_length: Annotated[
        int | None,
        Option(
            "maximum length in tokens of a text, or of a pair for a cross-encoder; the rest is cut off",
            MODEL,
            unset=AS_THE_MODEL_SAYS,
            least=3,
        ),
    ] = None
    trust_remote_code: TrustRemoteCode = False
    precision: Precision = FP32
    device: Device = AUTO
    on_bad_row: OnBadRow = STOP

    def check(self) -> None:
        """Refuse neither and both of the two kinds of teacher."""
        if (self.reranker is None) == (self.model is None):
            raise UserError("give either --reranker CROSS-ENCODER or --model EMBEDDING-MODEL")
        if self.head is not None and self.model is None:
            raise UserError(f"--head {self.head} needs --model, which is not given")
