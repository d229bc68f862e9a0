"""Options of commands that encode and search."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from biencoder.config.choices import FLOAT32, PASSAGE, TEXT_KINDS, VECTORS
from biencoder.config.headings import INPUT, MODEL, REQUIRED, RESULT
from biencoder.config.options import Option
from biencoder.config.shared import (
    A_BEIR_FOLDER,
    A_MODEL,
    SPLIT_HELP,
    USUAL_SPLIT,
    EncoderConfig,
    EncodingOptions,
)
from biencoder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EncoderConfig):
    """`biencoder evaluate`."""

    data: Annotated[Path, Option(A_BEIR_FOLDER, REQUIRED, metavar="DIR")]
    split: Annotated[str | None, Option(SPLIT_HELP, RESULT, unset=USUAL_SPLIT, metavar="NAME")] = None
    baseline: Annotated[
        str | None,
        Option(f"second model to compare with on the same queries: {A_MODEL}", RESULT, unset="none", metavar="MODEL"),
    ] = None
    top_k: Annotated[int, Option("documents to retrieve for each query, at least 100", RESULT, least=100)] = 100
    output: Annotated[
        Path | None, Option("JSON file to write the metrics to", RESULT, unset="not written", metavar="FILE")
    ] = None
    run_file: Annotated[
        Path | None, Option("file to write the ranking to, as a TREC run", RESULT, unset="not written", metavar="FILE")
    ] = None


@dataclass(frozen=True, kw_only=True)
class DiffConfig(EncodingOptions):
    """`biencoder diff`."""

    models: Annotated[
        tuple[str, ...],
        Option(
            f"the two models, the one before and the one after: {A_MODEL}", REQUIRED, metavar="MODEL", positional=True
        ),
    ]
    data: Annotated[Path, Option(A_BEIR_FOLDER, REQUIRED, metavar="DIR")]
    split: Annotated[str | None, Option(SPLIT_HELP, RESULT, unset=USUAL_SPLIT, metavar="NAME")] = None
    top: Annotated[
        int, Option("how many of the queries that lost most, and that won most, to print", RESULT, least=0)
    ] = 10
    top_k: Annotated[int, Option("documents to retrieve for each query, at least 100", RESULT, least=100)] = 100
    output: Annotated[
        Path | None,
        Option(
            "JSON Lines file to write all queries to, those that lost most first",
            RESULT,
            unset="not written",
            metavar="FILE",
        ),
    ] = None

    def check(self) -> None:
        """Refuse anything but two models."""
        if len(self.models) != 2:
            raise UserError(f"MODEL: {len(self.models)} given; name two models, the one before and the one after")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(EncoderConfig):
    """`biencoder encode`."""

    input: Annotated[
        Path, Option("texts: one per line, or JSON Lines with 'text' (and 'title'); also .gz", REQUIRED, metavar="FILE")
    ]
    output: Annotated[
        Path, Option(".npy file for the matrix, or .parquet file for ids, texts and vectors", REQUIRED, metavar="FILE")
    ]
    vectors: Annotated[
        str,
        Option(
            "how to store the vectors: in half (float16), a quarter (int8) or a 32nd (binary, ubinary) of the bytes; "
            "binary is signed, ubinary unsigned",
            RESULT,
            choices=VECTORS,
        ),
    ] = FLOAT32
    kind: Annotated[
        str, Option("which of the model's prompts to put before each text; plain: none", MODEL, choices=TEXT_KINDS)
    ] = PASSAGE


@dataclass(frozen=True, kw_only=True)
class SearchConfig(EncoderConfig):
    """`biencoder search`."""

    corpus: Annotated[
        Path,
        Option(
            "passages: one per line, or JSON Lines with 'text' (and 'title', '_id'); also .gz", REQUIRED, metavar="FILE"
        ),
    ]
    query: Annotated[str | None, Option("one query", INPUT, unset="use --queries", metavar="TEXT")] = None
    queries: Annotated[
        Path | None,
        Option(
            "many queries: one per line, or JSON Lines with 'text' (and '_id')",
            INPUT,
            unset="use --query",
            metavar="FILE",
        ),
    ] = None
    corpus_embeddings: Annotated[
        Path | None,
        Option(
            ".npy file of corpus vectors that 'biencoder encode' wrote",
            INPUT,
            unset="the corpus is encoded now",
            metavar="FILE",
        ),
    ] = None
    approximate: Annotated[
        bool,
        Option(
            "with --corpus-embeddings: look at the candidates that an index names, which is faster for large corpora "
            "and misses some passages; the index is made once, beside the matrix",
            INPUT,
        ),
    ] = False
    top_k: Annotated[int, Option("passages to show for each query", RESULT, least=1)] = 10
    output: Annotated[
        Path | None,
        Option(
            "file to write the results to: .jsonl, or a TREC run if the name ends in .trec or .run",
            RESULT,
            unset="printed",
            metavar="FILE",
        ),
    ] = None

    def check(self) -> None:
        """Refuse neither and both of ``--query`` and ``--queries``."""
        if (self.query is None) == (self.queries is None):
            raise UserError("give either --query 'TEXT' or --queries FILE")
        if self.approximate and self.corpus_embeddings is None:
            raise UserError("--approximate needs --corpus-embeddings: an index is of vectors that are stored")
