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
from biencoder.options import Config, flag_name, option, parse_dims, parse_size

POOLINGS = ("auto", "cls", "mean", "last")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
ON_BAD_ROW = ("stop", "skip")
PAIR_METHODS = ("title", "first-sentence", "spans", "headings")
BAD_ROW_HELP = "stop at a row that cannot be used, or skip and count such rows"
ATTENTIONS = ("causal", "bidirectional")
LORA_SAVES = ("merged", "adapter")
MIXES = ("size", "sqrt", "equal")
NO_IN_BATCH = "no_in_batch_neg"  # FlagEmbedding's mark at the end of names of data without in-batch negatives

# One constructor of options for each heading of --help.
_needed = partial(option, group="needed")
_model = partial(option, group="model")
_texts = partial(option, group="texts")
_trained = partial(option, group="what is trained")
_loss = partial(option, group="batches and loss")
_optimizer = partial(option, group="optimizer")
_evaluation = partial(option, group="evaluation and checkpoints")
_negatives = partial(option, group="negatives")
_result = partial(option, group="result")
_pairs = partial(option, group="pairs")
_generator = partial(option, group="questions by a language model")
_running = partial(option, group="running")

MODEL_HELP = "model folder, or its name on the Hugging Face hub"
DATA_HELP = "JSON lines (.gz too), Parquet or CSV files, or folders of these"
POOLING_HELP = (
    "how token vectors become one; auto: what the model's own sentence-transformers files say, else last for decoders "
    "and cls for the others"
)
DEVICE_HELP = "where to compute; auto: a GPU if there is one"
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
    attention: str | None = _model(
        "what a decoder's tokens attend to: what precedes them, or the whole text",
        default=None,
        unset="the model's own",
        choices=ATTENTIONS,
    )

    freeze_embeddings: bool = _trained("keep the embeddings as they are", default=False)
    freeze_layers: int = _trained("keep the embeddings and the first N layers as they are", default=0, least=0)
    lora_rank: int | None = _trained(
        "train a LoRA of this rank beside each linear layer, and nothing else",
        default=None,
        unset="no LoRA, all weights",
        least=1,
    )
    lora_alpha: float | None = _trained(
        "LoRA's products are scaled by this over --lora-rank", default=None, unset="twice --lora-rank", above=0
    )
    lora_save: str = _trained(
        "merged: a model like any other; adapter: LoRA's own weights, which name their base model",
        default="merged",
        choices=LORA_SAVES,
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
    two_way: bool = _loss("learn to find the query among queries too, with half of the weight", default=False)
    dims: tuple[int, ...] | None = _loss(
        "dimensions, such as 256,128,64, to which vectors may be cut later: each is trained beside all of them",
        default=None,
        unset="all of the model's",
        metavar="N",
        convert=parse_dims,
    )
    guide: str | None = _loss(
        "another model: a passage that it finds as near to the query as the positive is no negative",
        default=None,
        unset="none",
        metavar="MODEL",
    )
    guide_margin: float = _loss(
        "a passage counts as that near from so much below the positive's score by --guide", default=0.0, least=0
    )
    mine_negatives: int = _loss(
        "mine N hard negatives for each row with the base model, before training; 0: none", default=0, least=0
    )
    refresh_negatives: int | None = _loss(
        "mine them again every N epochs, with the model so far", default=None, unset="never", least=1
    )
    distillation: str = _loss(
        "loss against pos_scores and neg_scores, where rows carry both; kl: of the two distributions over the group; "
        "margin-mse: squared error of the margins, for scores on the scale of similarity over temperature",
        default="kl",
        choices=("kl", "margin-mse"),
    )
    distillation_weight: float = _loss(
        "weight of the distillation loss beside the contrastive one", default=1.0, least=0
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
    guard_data: tuple[Path, ...] | None = _evaluation(
        "BEIR folders of data that are not trained on: what the model lost or won there is in the report",
        default=None,
        unset="not looked at",
        metavar="DIR",
    )
    keep_base: float = _evaluation(
        "share, 0 to 1, of the base model's weights in the model that is saved: w = X base + (1 - X) tuned",
        default=0.0,
        least=0,
        most=1,
    )
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
    device: str = _running(DEVICE_HELP, default="auto", choices=DEVICES)
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
    on_bad_row: str = _running(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)
    seed: int = _running("whole number that decides order, sampling and dropout", default=42, least=0)

    def check(self) -> None:
        """Refuse a loss without negatives, and a temperature at which a loss over cosines cannot learn."""
        if self.normalize is not False and self.temperature > 0.5:
            raise UserError(
                f"--temperature {self.temperature:g} is above 0.5: cosines differ by at most 2, so the loss could "
                "hardly tell a positive from a negative; use 0.01 to 0.1, or --no-normalize"
            )
        refuse_split_alone(self.eval_split, self.eval_data)
        if self.two_way and not self.in_batch_negatives:
            raise UserError("--two-way finds a query among those of the batch; it needs --in-batch-negatives")
        if self.refresh_negatives is not None and not self.mine_negatives:
            raise UserError(f"--refresh-negatives {self.refresh_negatives}: is of --mine-negatives, which is not given")
        if self.mine_negatives and self.group_size == 1:
            raise UserError(f"--mine-negatives {self.mine_negatives}: a --group-size of 1 has no room for them")
        if self.guide_margin and self.guide is None:
            raise UserError(f"--guide-margin {self.guide_margin:g}: is of --guide, which is not given")
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_save == "adapter"):
            flag = "--lora-save adapter" if self.lora_alpha is None else f"--lora-alpha {self.lora_alpha:g}"
            raise UserError(f"{flag}: belongs to --lora-rank, which is not given")
        if self.keep_base and self.lora_save == "adapter":
            raise UserError("--keep-base averages whole weights; it needs --lora-save merged")
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
    dim: int | None = _model(
        "keep the first N dimensions of each vector, for models trained with --dims",
        default=None,
        unset="all",
        least=1,
    )
    precision: str = _running(
        "arithmetic of the model; auto: bf16 where the processor has it, else fp32", default="fp32", choices=PRECISIONS
    )
    device: str = _running(DEVICE_HELP, default="auto", choices=DEVICES)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(_EncoderConfig):
    """`biencoder evaluate`."""

    data: Path = _needed("BEIR folder: corpus.jsonl, queries.jsonl, qrels/", metavar="DIR")
    split: str | None = _result(SPLIT_HELP, default=None, unset=AS_THE_FOLDER, metavar="NAME")
    baseline: str | None = _result(
        "another model to compare with on the same queries: folder, or name on the hub",
        default=None,
        unset="none",
        metavar="MODEL",
    )
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
class MiningOptions(Config):
    """Which of the most similar passages become hard negatives: what `biencoder.retrieval.mine.mine` is told."""

    negatives: int = _negatives("hard negatives mined for each row", default=7, least=1)
    existing: str = _negatives(
        "keep the hard negatives that a row has, before the mined ones, or replace them",
        default="keep",
        choices=("keep", "replace"),
    )
    depth: int = _negatives("passages looked at for each query, the most similar ones", default=100, least=1)
    skip_top: int = _negatives(
        "of these, the N most similar ones that are no known positives are left out", default=0, least=0
    )
    max_share: float = _negatives(
        "a negative scores below this share of its row's lowest positive score; above 1, beyond the positive",
        default=0.95,
        above=0,
    )
    margin: float | None = _negatives(
        "a negative scores below its row's lowest positive score less this", default=None, unset="no margin"
    )
    max_score: float | None = _negatives("a negative scores below this", default=None, unset="no ceiling")
    choice: str = _negatives(
        "which of the passages that are left: the most similar ones, or random ones",
        default="top",
        choices=("top", "random"),
    )
    reranker_margin: float = _negatives(
        "with --reranker: a negative's logit is below the lowest one of its row's positives less this", default=1.0
    )
    seed: int = _running("whole number that decides a random choice", default=42, least=0)

    def check(self) -> None:
        """Refuse a depth in which there is no room for the negatives."""
        if self.depth < self.skip_top + self.negatives:
            raise UserError(
                f"--depth {self.depth}: leaves no room for --negatives {self.negatives} after --skip-top "
                f"{self.skip_top}; use {self.skip_top + self.negatives} at least, better several times as much"
            )


@dataclass(frozen=True, kw_only=True)
class MineConfig(MiningOptions, _EncoderConfig):
    """`biencoder mine`, and the argument of `biencoder.mine_hard_negatives`."""

    train_data: tuple[Path, ...] = _needed(f"training data: {DATA_HELP}", metavar="FILE")
    output: Path = _needed("the rows with their hard negatives, .jsonl or .jsonl.gz", metavar="FILE")
    corpus: Path | None = _texts(
        "passages to find negatives among: a line each, or JSON lines with 'text' (and 'title'), or a BEIR folder",
        default=None,
        unset="the positives and hard negatives of the training data",
        metavar="FILE",
    )
    reranker: str | None = _negatives(
        "cross-encoder, a folder or its name on the hub, which throws out what it scores like a positive",
        default=None,
        unset="none",
        metavar="MODEL",
    )
    on_bad_row: str = _running(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """`biencoder score`."""

    train_data: tuple[Path, ...] = _needed(f"training data: {DATA_HELP}", metavar="FILE")
    output: Path = _needed("the rows with the teacher's scores, .jsonl or .jsonl.gz", metavar="FILE")
    reranker: str | None = _model(
        "the teacher: a cross-encoder with one label, a folder or its name on the hub",
        default=None,
        unset="--model",
        metavar="MODEL",
    )
    model: str | None = _model(
        f"the teacher: an embedding model; {MODEL_HELP}", default=None, unset="--reranker", metavar="MODEL"
    )
    teacher_temperature: float | None = _model(
        "divides the teacher's scores; smaller is more decided",
        default=None,
        unset="1 for logits and inner products, 0.02 for cosines",
        above=0,
    )
    max_length: int | None = _model(
        "longest text in tokens, for a cross-encoder longest pair; the rest is cut off",
        default=None,
        unset="what the model says",
        least=3,
    )
    precision: str = _running(
        "arithmetic of the model; auto: bf16 where the processor has it, else fp32", default="fp32", choices=PRECISIONS
    )
    device: str = _running(DEVICE_HELP, default="auto", choices=DEVICES)
    on_bad_row: str = _running(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)

    def check(self) -> None:
        """Refuse none and both of the two kinds of teacher."""
        if (self.reranker is None) == (self.model is None):
            raise UserError("give one teacher: --reranker CROSS-ENCODER or --model EMBEDDING-MODEL")


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
    on_bad_row: str = _texts(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)

    def check(self) -> None:
        """Refuse a split of no folder."""
        refuse_split_alone(self.eval_split, self.eval_data)


@dataclass(frozen=True, kw_only=True)
class PairsConfig(Config):
    """`biencoder pairs`."""

    documents: Path = _needed(
        "a document a line, JSON lines with 'text' (and 'title'), a Markdown file, or a folder of .txt and .md files",
        metavar="PATH",
    )
    output: Path = _needed("training file, .jsonl", metavar="FILE")
    methods: tuple[str, ...] | None = _pairs(
        "how pairs are made without a language model", default=None, unset="all that a document allows",
        choices=PAIR_METHODS,
    )  # fmt: skip
    passage_words: int = _pairs(
        "longest passage in words (in scripts without spaces, characters)", default=200, least=10
    )
    max_same_query: int = _pairs(
        "most documents that may have the same query; a query of more, such as 'Introduction', is dropped",
        default=3,
        least=1,
    )
    seed: int = _pairs("whole number that decides the random choices", default=42, least=0)

    generator: str | None = _generator(
        "address of an OpenAI-compatible endpoint, up to and with /v1; its API key is read from BIENCODER_API_KEY or "
        "OPENAI_API_KEY",
        default=None,
        unset="no language model",
        metavar="URL",
    )
    generator_model: str | None = _generator(
        "the model's name at the endpoint", default=None, unset="needed with --generator", metavar="NAME"
    )
    model: str | None = _generator(
        f"{MODEL_HELP}: the base model, which must find the passage of a question again; without --generator, its "
        "tokenizer tells how many texts are cut off",
        default=None,
        unset="needed with --generator",
        metavar="MODEL",
    )
    questions_per_passage: int = _generator("most questions about a passage, all in one call", default=2, least=1)
    round_trip_k: int = _generator(
        "a question is kept when its own passage is among the N best that --model finds for it", default=3, least=1
    )
    prompt_file: Path | None = _generator(
        "what the endpoint is asked; {passage} stands for the passage", default=None, unset="our own", metavar="FILE"
    )
    max_calls: int | None = _generator(
        "most passages asked about, a sample of the documents", default=None, unset="all", least=1
    )
    concurrency: int = _generator("calls at a time", default=8, least=1, most=256)
    request_timeout: float = _generator("seconds until a call is given up and tried again", default=120.0, above=0)

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


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """`biencoder export`."""

    model: str = _needed(MODEL_HELP, metavar="MODEL")
    output_dir: Path = _needed("folder for the exported model; made when missing", metavar="DIR")
    format: str = _result("what to write", default="sentence-transformers", choices=("sentence-transformers",))
    pooling: str = _model(POOLING_HELP, default="auto", choices=POOLINGS)
    normalize: bool | None = _model(NORMALIZE_HELP, default=None, unset=AS_THE_MODEL)


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config):
    """`biencoder merge`."""

    models: tuple[str, ...] = _needed(
        "two or more models of one architecture: folders, or names on the Hugging Face hub",
        metavar="MODEL",
        positional=True,
    )
    output_dir: Path = _needed("folder for the merged model; made when missing", metavar="DIR")
    weights: tuple[float, ...] | None = _result(
        "share of each model, in their order; scaled to sum to 1",
        default=None,
        unset="equal shares",
        metavar="X",
        least=0,
    )
    spherical: bool = _result(
        "interpolate between two models on the great circle (slerp), tensor by tensor, not on the line", default=False
    )

    def check(self) -> None:
        """Refuse weights that do not fit the models, and an arc between more than two."""
        if len(self.models) < 2:
            raise UserError(f"MODEL: {self.models[0]} alone is nothing to merge; name two or more models")
        if self.weights is not None and len(self.weights) != len(self.models):
            raise UserError(f"--weights: {len(self.weights)} weights for {len(self.models)} models; give one for each")
        if self.weights is not None and not any(self.weights):
            raise UserError("--weights: all are 0; at least one model must have a share")
        if self.spherical and len(self.models) != 2:
            raise UserError(f"--spherical: is between two models, not {len(self.models)}")


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
