"""Options of commands that encode and search."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from biencoder.config.choices import FLOAT32, PASSAGE, TEXT_KINDS, VECTORS
from biencoder.config.headings import INPUT, LIMITS, MODEL, REQUIRED, RESULT, SERVER
from biencoder.config.options import Option
from biencoder.config.shared import (
    A_BEIR_FOLDER,
    A_MODEL,
    SPLIT_HELP,
    USUAL_SPLIT,
    EncoderConfig,
    EncodingOptions,
)
from biencoder.config.values import parse_size
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


@dataclass(frozen=True, kw_only=True)
class ServeConfig(EncoderConfig):
    """`biencoder serve`."""

    kind: Annotated[
        str,
        Option(
            "which of the model's prompts to put before the texts of a request without input_type; plain: none",
            MODEL,
            choices=TEXT_KINDS,
        ),
    ] = PASSAGE
    host: Annotated[
        str, Option("address to listen on; 0.0.0.0: on all networks of this machine", SERVER, metavar="ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[int, Option("port to listen on; 0: a free one", SERVER, least=0, most=65535)] = 8000
    served_model_name: Annotated[
        str | None, Option("name that clients know the model by", SERVER, unset="the last part of --model")
    ] = None
    api_key_file: Annotated[
        Path | None,
        Option(
            "file with the API keys that clients may use, one per line; without it, the key is read from "
            "BIENCODER_SERVE_API_KEY",
            SERVER,
            unset="no key",
            metavar="FILE",
        ),
    ] = None
    max_texts: Annotated[int, Option("most texts of a request", LIMITS, least=1)] = 2048
    max_characters: Annotated[int, Option("most characters of a text", LIMITS, least=1)] = 100_000
    max_body: Annotated[
        int, Option("most bytes of a request, such as 8MB", LIMITS, metavar="SIZE", convert=parse_size)
    ] = 16_000_000
    max_queue: Annotated[
        int, Option("texts that wait at most; a request with more than there is room for is refused", LIMITS, least=1)
    ] = 4096
    timeout: Annotated[
        float, Option("seconds in which a request must arrive, and then be answered", LIMITS, above=0)
    ] = 60.0

    def check(self) -> None:
        """Refuse a queue that a whole request has no room in."""
        if self.max_queue < self.max_texts:
            raise UserError(
                f"--max-queue {self.max_queue} has no room for a request of {self.max_texts} texts; lower --max-texts"
            )
