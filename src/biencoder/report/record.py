"""``report.json``: what ``report.html`` shows of a run that no other file of its folder holds.

The page is made from the files of a folder alone, so that ``biencoder report`` can make it again at any time.
"""

from dataclasses import dataclass, field
from pathlib import Path

from biencoder.files import atomic_write
from biencoder.report.typed import as_json

NAME = "report.json"


@dataclass(frozen=True)
class Finding:
    """A line of the audit: what was looked for, what was found, and whether you should look at it."""

    what: str
    found: str
    warn: bool


@dataclass(frozen=True)
class Cut:
    """Texts that are longer than the model sees.

    Attributes:
        side: ``queries`` or ``passages``.
        share: of them that are cut, 0 to 1.
        tokens: where they are cut.
        sample: how many were measured.
    """

    side: str
    share: float
    tokens: int
    sample: int


@dataclass(frozen=True)
class Bounds:
    """The ends of a 95% bootstrap interval of a mean over the queries."""

    low: float
    high: float


@dataclass(frozen=True)
class Means:
    """The intervals of a measure's means."""

    before: Bounds
    after: Bounds


@dataclass(frozen=True)
class Scores:
    """How a model scores the best relevant document of a query, and the best other one.

    Attributes:
        positive: queries in each bin by the score of their best relevant document.
        negative: the same by the score of their best other document.
        mean_positive: mean of the former.
        mean_negative: mean of the latter.
        first: share of the queries, 0 to 1, whose best relevant document scores above all others.
    """

    positive: list[int]
    negative: list[int]
    mean_positive: float
    mean_negative: float
    first: float


@dataclass(frozen=True)
class Similarity:
    """Both models on one scale: ``edges`` of the bins, one more than there are bins."""

    edges: list[float]
    before: Scores
    after: Scores

    def __post_init__(self) -> None:
        counts = [len(side) for each in (self.before, self.after) for side in (each.positive, each.negative)]
        if counts != [len(self.edges) - 1] * 4 or not counts[0]:
            raise ValueError("similarity should have one more edge than counts on each side")


@dataclass(frozen=True)
class Passage:
    """A passage that was found for a query."""

    text: str
    score: float
    relevant: bool


@dataclass(frozen=True)
class Answer:
    """A relevant passage of a query and its rank by both models; None below the first ten."""

    text: str
    before: int | None
    after: int | None


@dataclass(frozen=True)
class Change:
    """A query that won or lost, with its nDCG@10 and what was found for it.

    Attributes:
        query: its text.
        before: nDCG@10 by the base model.
        after: the same by the saved one.
        answers: the relevant passages whose ranks changed most.
        more: how many relevant passages are not among these.
        found_before: the first passages that the base model finds.
        found_after: the first passages that the saved model finds.
    """

    query: str
    before: float
    after: float
    answers: list[Answer]
    more: int
    found_before: list[Passage]
    found_after: list[Passage]


@dataclass(frozen=True)
class Changes:
    """The queries compared, and those of them that lost and won most.

    Attributes:
        queries: that were compared.
        lost_count: how many of them have a lower nDCG@10 after training.
        won_count: how many have a higher one.
        lost: those that lost most, the worst loss first.
        won: those that won most, the best gain first.
    """

    queries: int
    lost_count: int
    won_count: int
    lost: list[Change]
    won: list[Change]

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ValueError("changes should be of one query or more")


@dataclass(frozen=True)
class Record:
    """What ``report.json`` holds.

    Attributes:
        biencoder: the version that wrote it.
        rows: that the run trained on.
        steps: of the run.
        processes: that shared the work.
        device: ``cpu`` or ``cuda``.
        dim: dimensions of a vector.
        parameters: weights of the model.
        max_length: tokens of the longest text that the model reads.
        audit: of the training data.
        cut: shares of texts that are cut.
        means: for each measure, the intervals of its means.
        kept: sentences about the share of the base in the saved model.
        similarity: None for a run that an older version began.
        changes: None likewise.
    """

    biencoder: str
    rows: int
    steps: int
    processes: int
    device: str
    dim: int
    parameters: int
    max_length: int
    audit: list[Finding]
    cut: list[Cut]
    means: dict[str, Means]
    kept: list[str] = field(default_factory=list)
    similarity: Similarity | None = None
    changes: Changes | None = None


def write_record(path: Path, record: Record) -> None:
    """Write ``report.json``, whole or not at all."""
    with atomic_write(path, "wb") as file:
        file.write(as_json(record))
