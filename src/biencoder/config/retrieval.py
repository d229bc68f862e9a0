"""Options of commands that encode and search."""

# ruff: noqa: RUF009  (an option is a dataclass field)
from dataclasses import dataclass
from pathlib import Path

from biencoder.config import headings as under
from biencoder.config.shared import AS_THE_FOLDER, SPLIT_HELP, EncoderConfig
from biencoder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EncoderConfig):
    """`biencoder evaluate`."""

    data: Path = under.needed("BEIR folder: corpus.jsonl, queries.jsonl, qrels/", metavar="DIR")
    split: str | None = under.result(SPLIT_HELP, default=None, unset=AS_THE_FOLDER, metavar="NAME")
    baseline: str | None = under.result(
        "another model to compare with on the same queries: folder, or name on the hub",
        default=None,
        unset="none",
        metavar="MODEL",
    )
    top_k: int = under.result("documents retrieved for each query; at least 100", default=100, least=100)
    output: Path | None = under.result("write the figures as JSON", default=None, unset="no", metavar="FILE")
    run_file: Path | None = under.result("write the ranking as a TREC run", default=None, unset="no", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(EncoderConfig):
    """`biencoder encode`."""

    input: Path = under.needed("texts: a line each, or JSON lines with 'text' (and 'title'); .gz too", metavar="FILE")
    output: Path = under.needed("float32 matrix in the order of the input, .npy", metavar="FILE")
    kind: str = under.model(
        "which of the model's prompts to put before each text; plain: none",
        default="passage",
        choices=("query", "passage", "plain"),
    )


@dataclass(frozen=True, kw_only=True)
class SearchConfig(EncoderConfig):
    """`biencoder search`."""

    corpus: Path = under.needed(
        "passages: a line each, or JSON lines with 'text' (and 'title', '_id'); .gz too", metavar="FILE"
    )
    query: str | None = under.texts("one query", default=None, unset="--queries", metavar="TEXT")
    queries: Path | None = under.texts(
        "many queries: a line each, or JSON lines with 'text' (and '_id')",
        default=None,
        unset="--query",
        metavar="FILE",
    )
    corpus_embeddings: Path | None = under.texts(
        "the corpus as 'biencoder encode' wrote it, .npy", default=None, unset="encoded on the way", metavar="FILE"
    )
    top_k: int = under.result("passages shown for each query", default=10, least=1)
    output: Path | None = under.result(
        "write the results: .jsonl, or a TREC run when it ends in .trec or .run",
        default=None,
        unset="printed",
        metavar="FILE",
    )

    def check(self) -> None:
        """Refuse none and both of ``--query`` and ``--queries``."""
        if (self.query is None) == (self.queries is None):
            raise UserError("give one of --query 'TEXT' and --queries FILE")
