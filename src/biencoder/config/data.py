"""Options of commands about training data, and what a data set of a run is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from biencoder.config.choices import HIGHEST_TEMPERATURE, PAIR_METHODS, STOP
from biencoder.config.headings import GENERATOR, INPUT, LOSS, MODEL, PAIRS, REQUIRED
from biencoder.config.options import Config, Option, flag_name
from biencoder.config.shared import (
    A_MODEL,
    DATA_FILES,
    SPLIT_HELP,
    USUAL_SPLIT,
    OnBadRow,
    ScoresOutOf,
    TrainData,
    TrustRemoteCode,
    refuse_split_alone,
)
from biencoder.errors import UserError

NO_IN_BATCH = "no_in_batch_neg"  # FlagEmbedding's mark at the end of names of data without in-batch negatives
_SHARED_SETTINGS = (
    "temperature",
    "query_prompt",
    "passage_prompt",
    "group_size",
    "in_batch_negatives",
    "scores_out_of",
)


@dataclass(frozen=True, kw_only=True)
class DataSet(Config):
    """A part of the training data that shares its batches with no other part. A value of None is the run's."""

    has_flags: ClassVar[bool] = False

    path: Annotated[tuple[Path, ...], Option(DATA_FILES, REQUIRED, metavar="FILE")]
    name: Annotated[str | None, Option("name in reports", INPUT, unset="its path")] = None
    weight: Annotated[float, Option("factor on how often the data set is drawn", LOSS, above=0)] = 1.0
    temperature: Annotated[
        float | None, Option("number that divides the similarities in the loss", LOSS, unset="the run's", above=0)
    ] = None
    query_prompt: Annotated[str | None, Option("text to put before its queries", INPUT, unset="the run's")] = None
    passage_prompt: Annotated[str | None, Option("text to put before its passages", INPUT, unset="the run's")] = None
    group_size: Annotated[int | None, Option("passages per query", LOSS, unset="the run's", least=1)] = None
    in_batch_negatives: Annotated[
        bool | None,
        Option(
            "use the passages of the batch's other queries as negatives too",
            LOSS,
            unset=f"the run's; off if the path's name ends in {NO_IN_BATCH}",
        ),
    ] = None

    scores_out_of: Annotated[
        float | None, Option("highest score of two sentences", INPUT, unset="the run's", above=0)
    ] = None

    def filled_from(self, run: Config) -> "DataSet":
        """This data set, with the settings of ``run`` for those that are None."""
        own = {name: getattr(self, name) for name in _SHARED_SETTINGS}
        return replace(self, **{name: getattr(run, name) if value is None else value for name, value in own.items()})

    def check_within(self, batch_size: int, *, cosines: bool) -> None:
        """Refuse settings with which a run could not learn.

        Args:
            batch_size: queries per step of the run.
            cosines: the run's similarities are cosines.

        Raises:
            UserError: the temperature is too high for cosines, or a query has no negatives.
        """
        if cosines and (self.temperature or 0) > HIGHEST_TEMPERATURE:
            raise UserError(
                f"data set {self.name}: temperature {self.temperature:g} is above {HIGHEST_TEMPERATURE}, at which the "
                "loss could hardly tell a positive from a negative; use 0.01 to 0.1"
            )
        if self.group_size == 1 and (batch_size == 1 or not self.in_batch_negatives):
            raise UserError(
                f"data set {self.name}: group-size 1 without in-batch negatives leaves no negatives to learn from"
            )


def data_sets_of(train_data: "Sequence[Path | DataSet]") -> tuple[DataSet, ...]:
    """Training data as data sets; all plain paths together make one.

    A path whose name ends in :data:`NO_IN_BATCH` is a data set of its own, without in-batch negatives.
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

    train_data: TrainData
    eval_data: Annotated[
        Path | None,
        Option(
            "BEIR folder to check for leaks: its queries and passages must not be in the training data",
            INPUT,
            unset="no leak check",
            metavar="DIR",
        ),
    ] = None
    eval_split: Annotated[str | None, Option(SPLIT_HELP, INPUT, unset=USUAL_SPLIT, metavar="NAME")] = None
    scores_out_of: ScoresOutOf = 1.0
    model: Annotated[
        str | None,
        Option(
            f"model whose tokenizer counts the texts that are cut off: {A_MODEL}",
            MODEL,
            unset="not counted",
            metavar="MODEL",
        ),
    ] = None
    trust_remote_code: TrustRemoteCode = False
    query_max_len: Annotated[int, Option("maximum query length in tokens", INPUT, least=3)] = 64
    passage_max_len: Annotated[int, Option("maximum passage length in tokens", INPUT, least=3)] = 256
    group_size: Annotated[
        int, Option("passages per query; rows with too few hard negatives for it are counted", INPUT, least=1)
    ] = 8
    on_bad_row: OnBadRow = STOP

    def check(self) -> None:
        """Refuse a split without a folder."""
        refuse_split_alone(self.eval_split, self.eval_data)


@dataclass(frozen=True, kw_only=True)
class PairsConfig(Config):
    """`biencoder pairs`."""

    documents: Annotated[
        Path,
        Option(
            "documents: one per line, JSON Lines with 'text' (and 'title'), one Markdown file, or a folder of .txt and "
            ".md files",
            REQUIRED,
            metavar="PATH",
        ),
    ]
    output: Annotated[Path, Option("training file to write, .jsonl", REQUIRED, metavar="FILE")]
    methods: Annotated[
        tuple[str, ...] | None,
        Option(
            "how to make pairs without a language model",
            PAIRS,
            unset="every method that a document allows",
            choices=PAIR_METHODS,
        ),
    ] = None
    passage_words: Annotated[
        int, Option("maximum passage length in words (in characters for scripts without spaces)", PAIRS, least=10)
    ] = 200
    max_same_query: Annotated[
        int, Option("drop a query, such as 'Introduction', if more than this many documents have it", PAIRS, least=1)
    ] = 3
    seed: Annotated[int, Option("random seed", PAIRS, least=0)] = 42

    generator: Annotated[
        str | None,
        Option(
            "address of an OpenAI-compatible endpoint, up to and including /v1; its API key is read from "
            "BIENCODER_API_KEY or OPENAI_API_KEY",
            GENERATOR,
            unset="no language model",
            metavar="URL",
        ),
    ] = None
    generator_model: Annotated[
        str | None,
        Option(
            "name of the language model at the endpoint", GENERATOR, unset="required with --generator", metavar="NAME"
        ),
    ] = None
    model: Annotated[
        str | None,
        Option(
            f"base model: {A_MODEL}; with --generator, it must find the passage that a question was made from; without "
            "--generator, its tokenizer counts the texts that are cut off",
            MODEL,
            unset="required with --generator",
            metavar="MODEL",
        ),
    ] = None
    trust_remote_code: TrustRemoteCode = False
    questions_per_passage: Annotated[
        int, Option("maximum number of questions per passage, all asked for in one call", GENERATOR, least=1)
    ] = 2
    round_trip_k: Annotated[
        int,
        Option(
            "keep a question if its own passage is among the N best passages that --model finds for it",
            GENERATOR,
            least=1,
        ),
    ] = 3
    prompt_file: Annotated[
        Path | None,
        Option(
            "prompt for the language model; {passage} stands for the passage",
            GENERATOR,
            unset="the built-in prompt",
            metavar="FILE",
        ),
    ] = None
    max_calls: Annotated[
        int | None,
        Option("maximum number of passages to ask about, sampled from the documents", GENERATOR, unset="all", least=1),
    ] = None
    concurrency: Annotated[int, Option("number of calls at the same time", GENERATOR, least=1, most=256)] = 8
    request_timeout: Annotated[
        float, Option("seconds to wait for an answer before the call is tried again", GENERATOR, above=0)
    ] = 120.0

    def check(self) -> None:
        """Refuse a generator without what it needs, and what needs a generator without one."""
        if self.generator is None:
            for name in ("generator_model", "prompt_file", "max_calls"):
                if getattr(self, name) is not None:
                    raise UserError(f"{flag_name(name)} needs --generator URL, which is not given")
            return
        if self.methods is not None:
            raise UserError("--methods makes pairs without a language model; leave out --methods or --generator")
        missing = [flag_name(name) for name in ("generator_model", "model") if getattr(self, name) is None]
        if missing:
            raise UserError(f"{' and '.join(missing)} must be given with --generator")
