"""Options of commands about training data, and what a data set of a run is."""

# ruff: noqa: RUF009  (an option is a dataclass field)
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from biencoder.config import headings as under
from biencoder.config.options import Config, flag_name
from biencoder.config.shared import (
    AS_THE_FOLDER,
    BAD_ROW_HELP,
    DATA_HELP,
    MODEL_HELP,
    ON_BAD_ROW,
    SPLIT_HELP,
    TRUST_HELP,
    refuse_split_alone,
)
from biencoder.errors import UserError

PAIR_METHODS = ("title", "first-sentence", "spans", "headings")
NO_IN_BATCH = "no_in_batch_neg"  # FlagEmbedding's mark at the end of names of data without in-batch negatives


@dataclass(frozen=True, kw_only=True)
class DataSet(Config):
    """A part of the training data that shares its batches with no other; what is None is as for the whole run."""

    has_flags: ClassVar[bool] = False

    path: tuple[Path, ...] = under.needed(DATA_HELP, metavar="FILE")
    name: str | None = under.texts("what reports call it", default=None, unset="its path")
    weight: float = under.loss("factor on how often it is drawn", default=1.0, above=0)
    temperature: float | None = under.loss("its own", default=None, unset="the run's", above=0)
    query_prompt: str | None = under.texts("text put before its queries", default=None, unset="the run's")
    passage_prompt: str | None = under.texts("text put before its passages", default=None, unset="the run's")
    group_size: int | None = under.loss("passages per query", default=None, unset="the run's", least=1)
    in_batch_negatives: bool | None = under.loss(
        "the other queries' passages are negatives too",
        default=None,
        unset=f"the run's; off where the path's name ends in {NO_IN_BATCH}",
    )


def data_sets_of(train_data: "Sequence[Path | DataSet]") -> tuple[DataSet, ...]:
    """Training data as data sets: all plain paths together are one.

    A path whose name ends in :data:`NO_IN_BATCH` is one of its own, without in-batch negatives.
    """
    plain = tuple(item for item in train_data if isinstance(item, Path) and not _is_without_in_batch(item))
    found: list[DataSet] = [DataSet(path=plain)] if plain else []
    for item in train_data:
        if isinstance(item, DataSet):
            off = item.in_batch_negatives is None and all(map(_is_without_in_batch, item.path))
            found.append(replace(item, in_batch_negatives=False) if off else item)
        elif _is_without_in_batch(item):
            found.append(DataSet(path=(item,), in_batch_negatives=False))
    return tuple(replace(data_set, name=data_set.name or _some(data_set.path)) for data_set in found)


def _some(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:2])) + (", …" if len(paths) > 2 else "")


def _is_without_in_batch(path: Path) -> bool:
    return path.name.partition(".")[0].endswith(NO_IN_BATCH)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Config):
    """`biencoder check`."""

    train_data: tuple[Path, ...] = under.needed(f"training data: {DATA_HELP}", metavar="FILE")
    eval_data: Path | None = under.texts(
        "BEIR folder to look for leaks into", default=None, unset="no leak check", metavar="DIR"
    )
    eval_split: str | None = under.texts(SPLIT_HELP, default=None, unset=AS_THE_FOLDER, metavar="NAME")
    model: str | None = under.texts(
        f"{MODEL_HELP}; its tokenizer tells how many texts are cut off",
        default=None,
        unset="not counted",
        metavar="MODEL",
    )
    trust_remote_code: bool = under.texts(TRUST_HELP, default=False)
    query_max_len: int = under.texts("longest query in tokens", default=64, least=3)
    passage_max_len: int = under.texts("longest passage in tokens", default=256, least=3)
    group_size: int = under.texts("passages per query, to count the rows with fewer hard negatives", default=8, least=1)
    on_bad_row: str = under.texts(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)

    def check(self) -> None:
        """Refuse a split of no folder."""
        refuse_split_alone(self.eval_split, self.eval_data)


@dataclass(frozen=True, kw_only=True)
class PairsConfig(Config):
    """`biencoder pairs`."""

    documents: Path = under.needed(
        "a document a line, JSON lines with 'text' (and 'title'), a Markdown file, or a folder of .txt and .md files",
        metavar="PATH",
    )
    output: Path = under.needed("training file, .jsonl", metavar="FILE")
    methods: tuple[str, ...] | None = under.pairs(
        "how pairs are made without a language model", default=None, unset="all that a document allows",
        choices=PAIR_METHODS,
    )  # fmt: skip
    passage_words: int = under.pairs(
        "longest passage in words (in scripts without spaces, characters)", default=200, least=10
    )
    max_same_query: int = under.pairs(
        "most documents that may have the same query; a query of more, such as 'Introduction', is dropped",
        default=3,
        least=1,
    )
    seed: int = under.pairs("whole number that decides the random choices", default=42, least=0)

    generator: str | None = under.generator(
        "address of an OpenAI-compatible endpoint, up to and with /v1; its API key is read from BIENCODER_API_KEY or "
        "OPENAI_API_KEY",
        default=None,
        unset="no language model",
        metavar="URL",
    )
    generator_model: str | None = under.generator(
        "the model's name at the endpoint", default=None, unset="needed with --generator", metavar="NAME"
    )
    model: str | None = under.generator(
        f"{MODEL_HELP}: the base model, which must find the passage of a question again; without --generator, its "
        "tokenizer tells how many texts are cut off",
        default=None,
        unset="needed with --generator",
        metavar="MODEL",
    )
    trust_remote_code: bool = under.generator(TRUST_HELP, default=False)
    questions_per_passage: int = under.generator("most questions about a passage, all in one call", default=2, least=1)
    round_trip_k: int = under.generator(
        "a question is kept when its own passage is among the N best that --model finds for it", default=3, least=1
    )
    prompt_file: Path | None = under.generator(
        "what the endpoint is asked; {passage} stands for the passage", default=None, unset="our own", metavar="FILE"
    )
    max_calls: int | None = under.generator(
        "most passages asked about, a sample of the documents", default=None, unset="all", least=1
    )
    concurrency: int = under.generator("calls at a time", default=8, least=1, most=256)
    request_timeout: float = under.generator("seconds until a call is given up and tried again", default=120.0, above=0)

    def check(self) -> None:
        """Refuse a generator without what it needs, and what needs a generator without one."""
        if self.generator is None:
            for name in ("generator_model", "prompt_file", "max_calls"):
                if getattr(self, name) is not None:
                    raise UserError(f"{flag_name(name)} is for --generator URL, which is not given")
            return
        if self.methods is not None:
            raise UserError("--methods is for pairs without a language model; leave it out, or leave out --generator")
        missing = [flag_name(name) for name in ("generator_model", "model") if getattr(self, name) is None]
        if missing:
            raise UserError(f"{' and '.join(missing)} must be given with --generator")
