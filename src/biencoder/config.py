"""What can be asked of each command: one frozen, validated dataclass a command, no logic.

The flags of the command line, the keys of ``--config`` and the arguments in Python are these fields and nothing else.
Standard library only, so that ``biencoder --help`` is instant.
"""

# ruff: noqa: RUF009  (an option is a dataclass field)
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from biencoder.errors import UserError
from biencoder.options import Config, option, parse_size

POOLINGS = ("auto", "cls", "mean", "last")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
ON_BAD_ROW = ("stop", "skip")
MIXES = ("size", "sqrt", "equal")
NO_IN_BATCH = "no_in_batch_neg"  # FlagEmbedding's mark at the end of names of data without in-batch negatives

# One constructor of options for each heading of --help.
_needed = partial(option, group="needed")
_model = partial(option, group="model")
_texts = partial(option, group="texts")
_loss = partial(option, group="batches and loss")
_optimizer = partial(option, group="optimizer")
_evaluation = partial(option, group="evaluation and checkpoints")
_result = partial(option, group="result")
_running = partial(option, group="running")

MODEL_HELP = "model folder, or its name on the Hugging Face hub"
DATA_HELP = "JSON lines (.gz too), Parquet or CSV files, or folders of these"
POOLING_HELP = (
    "how token vectors become one; auto: what the model's own sentence-transformers files say, else last for decoders "
    "and cls for the others"
)
NORMALIZE_HELP = "scale vectors to length 1, so that similarity is the cosine"
SPLIT_HELP = "which file of the evaluation folder's qrels/"
AS_THE_FOLDER = "test, or the only one"
AS_THE_MODEL = "what the model says, else on"


def refuse_split_alone(eval_split: str | None, eval_data: Path | None) -> None:
    """Raise `UserError` when a split is named of no folder."""
    if eval_split is not None and eval_data is None:
        raise UserError(f"--eval-split {eval_split}: names a part of --eval-data, which is not given")


@dataclass(frozen=True, kw_only=True)
class DataSet(Config):
    """A part of the training data that shares its batches with no other; what is None is as for the whole run."""

    has_flags: ClassVar[bool] = False

    path: tuple[Path, ...] = _needed(DATA_HELP, metavar="FILE")
    name: str | None = _texts("what reports call it", default=None, unset="its path")
    weight: float = _loss("factor on how often it is drawn", default=1.0, above=0)
    temperature: float | None = _loss("its own", default=None, unset="the run's", above=0)
    query_prompt: str | None = _texts("text put before its queries", default=None, unset="the run's")
    passage_prompt: str | None = _texts("text put before its passages", default=None, unset="the run's")
    group_size: int | None = _loss("passages per query", default=None, unset="the run's", least=1)
    in_batch_negatives: bool | None = _loss(
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
class TrainConfig(Config):
    """`biencoder train`, and the argument of `biencoder.train`."""

    model: str = _needed(MODEL_HELP, metavar="MODEL")
    train_data: tuple[Path | DataSet, ...] = _needed(f"training data: {DATA_HELP}", metavar="FILE")
    output_dir: Path = _needed("folder for the trained model; made when missing", metavar="DIR")

    pooling: str = _model(POOLING_HELP, default="auto", choices=POOLINGS)
    normalize: bool | None = _model(NORMALIZE_HELP, default=None, unset=AS_THE_MODEL)
    query_prompt: str | None = _model(
        "text put before every query; '' for none", default=None, unset="the model's own", metavar="TEXT"
    )
    passage_prompt: str | None = _model(
        "text put before every passage; '' for none", default=None, unset="the model's own", metavar="TEXT"
    )
    query_max_len: int = _model(
        "longest query in tokens, prompt and special tokens included; the rest is cut off", default=64, least=3
    )
    passage_max_len: int = _model(
        "longest passage in tokens, prompt and special tokens included; the rest is cut off", default=256, least=3
    )
    dropout: float | None = _model(
        "dropout probability in training", default=None, unset="the model's own", least=0, below=1
    )

    batch_size: int = _loss(
        "queries per optimizer step over all ranks; sets the number of negatives, not the chunks", default=64, least=1
    )
    group_size: int = _loss("passages per query: 1 positive and up to N-1 of its hard negatives", default=8, least=1)
    mix: str = _loss(
        "how often each of several data sets is drawn: by size, by the square root of it, or equally",
        default="size",
        choices=MIXES,
    )
    temperature: float = _loss(
        "divides the similarities in the loss, no unit; 1.0 when vectors are not normalised", default=0.02, above=0
    )
    in_batch_negatives: bool = _loss("the other queries' passages are negatives too", default=True)
    negatives_cross_device: bool = _loss("share negatives over all ranks under torchrun", default=True)
    mask_false_negatives: bool = _loss(
        "a passage that equals a known positive of the query is no negative of it", default=True
    )
    distillation_weight: float = _loss(
        "weight of the distillation loss beside the contrastive one, where rows carry pos_scores and neg_scores",
        default=1.0,
        least=0,
    )

    learning_rate: float = _optimizer("highest learning rate, per step", default=5e-5, above=0)
    schedule: str = _optimizer(
        "how the learning rate falls to 0 after warm-up", default="linear", choices=("linear", "cosine")
    )
    epochs: int = _optimizer("passes over the training data", default=1, least=1)
    max_steps: int | None = _optimizer(
        "end after this many optimizer steps, whatever --epochs says",
        default=None,
        unset="as many as --epochs makes",
        least=1,
    )
    warmup_ratio: float = _optimizer(
        "share of the steps, 0 to 1, in which the learning rate rises from 0", default=0.1, least=0, most=1
    )
    weight_decay: float = _optimizer("AdamW's decay, of matrices only", default=0.01, least=0)
    max_grad_norm: float = _optimizer("L2 norm to which the gradient is clipped", default=1.0, above=0)

    eval_data: Path | None = _evaluation(
        "BEIR folder: corpus.jsonl, queries.jsonl, qrels/",
        default=None,
        unset="a slice of the training data that is never trained on",
        metavar="DIR",
    )
    eval_split: str | None = _evaluation(SPLIT_HELP, default=None, unset=AS_THE_FOLDER, metavar="NAME")
    eval_steps: int | None = _evaluation(
        "evaluate every N steps", default=None, unset="at the end of each epoch", least=1
    )
    save_steps: int = _evaluation("write a checkpoint every N steps", default=500, least=1)
    keep_checkpoints: int = _evaluation("newest checkpoints kept", default=2, least=1)
    resume: str = _evaluation(
        "auto: go on from the newest whole checkpoint in --output-dir; never: refuse a folder that is not empty",
        default="auto",
        choices=("auto", "never"),
    )

    precision: str = _running(
        "arithmetic of the model; auto: bf16 autocast where the processor has it, else fp32",
        default="auto",
        choices=PRECISIONS,
    )
    device: str = _running("where to compute; auto: a GPU if there is one", default="auto", choices=DEVICES)
    memory_budget: int | None = _running(
        "most memory that each process may take, such as 1.5GB; on a GPU, of its memory",
        default=None,
        unset="activations in proportion to the model, at most half of the memory; on a GPU, most of what is free",
        metavar="SIZE",
        convert=parse_size,
    )
    gradient_checkpointing: bool = _running(
        "recompute activations in the backward pass: less memory, more time", default=False
    )
    on_bad_row: str = _running(
        "stop at a row that cannot be used, or skip and count such rows", default="stop", choices=ON_BAD_ROW
    )
    seed: int = _running("whole number that decides order, sampling and dropout", default=42, least=0)

    def check(self) -> None:
        """Refuse a loss without negatives, and a temperature at which a loss over cosines cannot learn."""
        if self.normalize is not False and self.temperature > 0.5:
            raise UserError(
                f"--temperature {self.temperature:g} is above 0.5: cosines differ by at most 2, so the loss could "
                "hardly tell a positive from a negative; use 0.01 to 0.1, or --no-normalize"
            )
        refuse_split_alone(self.eval_split, self.eval_data)
        if self.group_size == 1 and (self.batch_size == 1 or not self.in_batch_negatives):
            why = "--batch-size 1" if self.in_batch_negatives else "--no-in-batch-negatives"
            raise UserError(f"--group-size 1 with {why} leaves no negatives to learn from; raise one of them")
        for data_set in self.data_sets:
            if self.normalize is not False and (data_set.temperature or 0) > 0.5:
                raise UserError(
                    f"data set {data_set.name}: temperature {data_set.temperature:g} is above 0.5, at which the loss "
                    "could hardly tell a positive from a negative; use 0.01 to 0.1"
                )
            if data_set.group_size == 1 and (self.batch_size == 1 or not data_set.in_batch_negatives):
                raise UserError(
                    f"data set {data_set.name}: group-size 1 without in-batch negatives leaves none to learn from"
                )

    @property
    def data_sets(self) -> tuple[DataSet, ...]:
        """The parts of ``train_data`` that share no batch; the run's settings stand where they have none.

        Where vectors are not normalised, the temperature is the run's for all.
        """
        return tuple(map(self._with_settings, data_sets_of(self.train_data)))

    def _with_settings(self, data_set: DataSet) -> DataSet:
        own = {name: getattr(data_set, name) for name in _SHARED_SETTINGS}
        if self.normalize is False:
            own["temperature"] = None
        filled = {field: getattr(self, field) if value is None else value for field, value in own.items()}
        return replace(data_set, **filled)


_SHARED_SETTINGS = ("temperature", "query_prompt", "passage_prompt", "group_size", "in_batch_negatives")


@dataclass(frozen=True, kw_only=True)
class _EncoderConfig(Config):
    """What the commands that encode have in common."""

    model: str = _needed(MODEL_HELP, metavar="MODEL")
    pooling: str = _model(POOLING_HELP, default="auto", choices=POOLINGS)
    normalize: bool | None = _model(NORMALIZE_HELP, default=None, unset=AS_THE_MODEL)
    max_length: int | None = _model(
        "longest text in tokens, prompt and special tokens included; the rest is cut off",
        default=None,
        unset="what the model says",
        least=3,
    )
    precision: str = _running(
        "arithmetic of the model; auto: bf16 where the processor has it, else fp32", default="fp32", choices=PRECISIONS
    )
    device: str = _running("where to compute; auto: a GPU if there is one", default="auto", choices=DEVICES)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(_EncoderConfig):
    """`biencoder evaluate`."""

    data: Path = _needed("BEIR folder: corpus.jsonl, queries.jsonl, qrels/", metavar="DIR")
    split: str | None = _result(SPLIT_HELP, default=None, unset=AS_THE_FOLDER, metavar="NAME")
    top_k: int = _result("documents retrieved for each query; at least 100", default=100, least=100)
    output: Path | None = _result("write the figures as JSON", default=None, unset="no", metavar="FILE")
    run_file: Path | None = _result("write the ranking as a TREC run", default=None, unset="no", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(_EncoderConfig):
    """`biencoder encode`."""

    input: Path = _needed("texts: a line each, or JSON lines with 'text' (and 'title'); .gz too", metavar="FILE")
    output: Path = _needed("float32 matrix in the order of the input, .npy", metavar="FILE")
    kind: str = _model(
        "which of the model's prompts to put before each text; plain: none",
        default="passage",
        choices=("query", "passage", "plain"),
    )


@dataclass(frozen=True, kw_only=True)
class SearchConfig(_EncoderConfig):
    """`biencoder search`."""

    corpus: Path = _needed(
        "passages: a line each, or JSON lines with 'text' (and 'title', '_id'); .gz too", metavar="FILE"
    )
    query: str | None = _texts("one query", default=None, unset="--queries", metavar="TEXT")
    queries: Path | None = _texts(
        "many queries: a line each, or JSON lines with 'text' (and '_id')",
        default=None,
        unset="--query",
        metavar="FILE",
    )
    corpus_embeddings: Path | None = _texts(
        "the corpus as 'biencoder encode' wrote it, .npy", default=None, unset="encoded on the way", metavar="FILE"
    )
    top_k: int = _result("passages shown for each query", default=10, least=1)
    output: Path | None = _result(
        "write the results: .jsonl, or a TREC run when it ends in .trec or .run",
        default=None,
        unset="printed",
        metavar="FILE",
    )

    def check(self) -> None:
        """Refuse none and both of ``--query`` and ``--queries``."""
        if (self.query is None) == (self.queries is None):
            raise UserError("give one of --query 'TEXT' and --queries FILE")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Config):
    """`biencoder check`."""

    train_data: tuple[Path, ...] = _needed(f"training data: {DATA_HELP}", metavar="FILE")
    eval_data: Path | None = _texts(
        "BEIR folder to look for leaks into", default=None, unset="no leak check", metavar="DIR"
    )
    eval_split: str | None = _texts(SPLIT_HELP, default=None, unset=AS_THE_FOLDER, metavar="NAME")
    model: str | None = _texts(
        f"{MODEL_HELP}; its tokenizer tells how many texts are cut off",
        default=None,
        unset="not counted",
        metavar="MODEL",
    )
    query_max_len: int = _texts("longest query in tokens", default=64, least=3)
    passage_max_len: int = _texts("longest passage in tokens", default=256, least=3)
    group_size: int = _texts("passages per query, to count the rows with fewer hard negatives", default=8, least=1)
    on_bad_row: str = _texts(
        "stop at a row that cannot be used, or skip and count such rows", default="stop", choices=ON_BAD_ROW
    )

    def check(self) -> None:
        """Refuse a split of no folder."""
        refuse_split_alone(self.eval_split, self.eval_data)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """`biencoder export`."""

    model: str = _needed(MODEL_HELP, metavar="MODEL")
    output_dir: Path = _needed("folder for the exported model; made when missing", metavar="DIR")
    format: str = _result("what to write", default="sentence-transformers", choices=("sentence-transformers",))
    pooling: str = _model(POOLING_HELP, default="auto", choices=POOLINGS)
    normalize: bool | None = _model(NORMALIZE_HELP, default=None, unset=AS_THE_MODEL)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """`biencoder demo`."""

    output_dir: Path = _result(
        "folder for the data set and the trained model", default=Path("biencoder-demo"), metavar="DIR"
    )
    max_steps: int | None = _running(
        "end training after this many optimizer steps", default=None, unset="one epoch", least=1
    )
    seed: int = _running("whole number that decides split, order and dropout", default=42, least=0)
