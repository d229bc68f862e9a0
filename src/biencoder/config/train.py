"""Options of `biencoder train`."""

# ruff: noqa: RUF009  (an option is a dataclass field)
from dataclasses import dataclass, replace
from pathlib import Path

from biencoder.config import headings as under
from biencoder.config.data import DataSet, data_sets_of
from biencoder.config.options import Config, parse_dims, parse_size
from biencoder.config.shared import (
    AS_THE_FOLDER,
    AS_THE_MODEL,
    BAD_ROW_HELP,
    DATA_HELP,
    DEVICE_HELP,
    DEVICES,
    MODEL_HELP,
    NORMALIZE_HELP,
    ON_BAD_ROW,
    POOLING_HELP,
    POOLINGS,
    PRECISIONS,
    SPLIT_HELP,
    TRUST_HELP,
    refuse_split_alone,
)
from biencoder.errors import UserError

ATTENTIONS = ("causal", "bidirectional")
ON_NONFINITE = ("stop", "skip")
LORA_SAVES = ("merged", "adapter")
MIXES = ("size", "sqrt", "equal")
_SHARED_SETTINGS = ("temperature", "query_prompt", "passage_prompt", "group_size", "in_batch_negatives")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """`biencoder train`, and the argument of `biencoder.train`."""

    model: str = under.needed(MODEL_HELP, metavar="MODEL")
    train_data: tuple[Path | DataSet, ...] = under.needed(f"training data: {DATA_HELP}", metavar="FILE")
    output_dir: Path = under.needed("folder for the trained model; made when missing", metavar="DIR")

    pooling: str = under.model(POOLING_HELP, default="auto", choices=POOLINGS)
    normalize: bool | None = under.model(NORMALIZE_HELP, default=None, unset=AS_THE_MODEL)
    query_prompt: str | None = under.model(
        "text put before every query; '' for none", default=None, unset="the model's own", metavar="TEXT"
    )
    passage_prompt: str | None = under.model(
        "text put before every passage; '' for none", default=None, unset="the model's own", metavar="TEXT"
    )
    query_max_len: int = under.model(
        "longest query in tokens, prompt and special tokens included; the rest is cut off", default=64, least=3
    )
    passage_max_len: int = under.model(
        "longest passage in tokens, prompt and special tokens included; the rest is cut off", default=256, least=3
    )
    dropout: float | None = under.model(
        "dropout probability in training", default=None, unset="the model's own", least=0, below=1
    )
    attention: str | None = under.model(
        "what a decoder's tokens attend to: what precedes them, or the whole text",
        default=None,
        unset="the model's own",
        choices=ATTENTIONS,
    )
    trust_remote_code: bool = under.model(TRUST_HELP, default=False)

    freeze_embeddings: bool = under.trained("keep the embeddings as they are", default=False)
    freeze_layers: int = under.trained("keep the embeddings and the first N layers as they are", default=0, least=0)
    lora_rank: int | None = under.trained(
        "train a LoRA of this rank beside each linear layer, and nothing else",
        default=None,
        unset="no LoRA, all weights",
        least=1,
    )
    lora_alpha: float | None = under.trained(
        "LoRA's products are scaled by this over --lora-rank", default=None, unset="twice --lora-rank", above=0
    )
    lora_save: str = under.trained(
        "merged: a model like any other; adapter: LoRA's own weights, which name their base model",
        default="merged",
        choices=LORA_SAVES,
    )

    batch_size: int = under.loss(
        "queries per optimizer step over all ranks; sets the number of negatives, not the chunks", default=64, least=1
    )
    group_size: int = under.loss(
        "passages per query: 1 positive and up to N-1 of its hard negatives", default=8, least=1
    )
    cluster_size: int = under.loss(
        "batches are made of clusters of N rows whose queries the base model finds similar: each other's hard "
        "negatives; 1: rows at random",
        default=16,
        least=1,
    )
    mix: str = under.loss(
        "how often each of several data sets is drawn: by size, by the square root of it, or equally",
        default="size",
        choices=MIXES,
    )
    temperature: float = under.loss(
        "divides the similarities in the loss, no unit; 1.0 when vectors are not normalised", default=0.05, above=0
    )
    in_batch_negatives: bool = under.loss("the other queries' passages are negatives too", default=True)
    negatives_cross_device: bool = under.loss("share negatives over all ranks under torchrun", default=True)
    mask_false_negatives: bool = under.loss(
        "a passage that equals a known positive of the query is no negative of it", default=True
    )
    two_way: bool | None = under.loss(
        "learn to find the query among queries too, with half of the weight",
        default=None,
        unset="on where there are in-batch negatives",
    )
    dims: tuple[int, ...] | None = under.loss(
        "dimensions, such as 256,128,64, to which vectors may be cut later: each is trained beside all of them",
        default=None,
        unset="all of the model's",
        metavar="N",
        convert=parse_dims,
    )
    guide: str | None = under.loss(
        "another model: a passage that it finds as near to the query as the positive is no negative",
        default=None,
        unset="none",
        metavar="MODEL",
    )
    guide_margin: float = under.loss(
        "a passage counts as that near from so much below the positive's score by --guide", default=0.0, least=0
    )
    mine_negatives: int = under.loss(
        "mine N hard negatives for each row with the base model, before training; 0: none", default=0, least=0
    )
    refresh_negatives: int | None = under.loss(
        "mine them again every N epochs, with the model so far", default=None, unset="never", least=1
    )
    distillation: str = under.loss(
        "loss against pos_scores and neg_scores, where rows carry both; kl: of the two distributions over the group; "
        "margin-mse: squared error of the margins, for scores on the scale of similarity over temperature",
        default="kl",
        choices=("kl", "margin-mse"),
    )
    distillation_weight: float = under.loss(
        "weight of the distillation loss beside the contrastive one", default=1.0, least=0
    )

    learning_rate: float | None = under.optimizer(
        "highest learning rate, per step",
        default=None,
        unset="1e-4 for models up to 384 wide, 5e-5 at 768, lower for wider ones; 10 times that with --lora-rank",
        above=0,
    )
    schedule: str = under.optimizer(
        "how the learning rate falls to 0 after warm-up", default="linear", choices=("linear", "cosine")
    )
    epochs: int = under.optimizer("passes over the training data", default=1, least=1)
    max_steps: int | None = under.optimizer(
        "end after this many optimizer steps, whatever --epochs says",
        default=None,
        unset="as many as --epochs makes",
        least=1,
    )
    warmup_ratio: float = under.optimizer(
        "share of the steps, 0 to 1, in which the learning rate rises from 0", default=0.1, least=0, most=1
    )
    weight_decay: float = under.optimizer("AdamW's decay, of matrices only", default=0.01, least=0)
    max_grad_norm: float = under.optimizer("L2 norm to which the gradient is clipped", default=1.0, above=0)

    eval_data: Path | None = under.evaluation(
        "BEIR folder: corpus.jsonl, queries.jsonl, qrels/",
        default=None,
        unset="a slice of the training data that is never trained on",
        metavar="DIR",
    )
    eval_split: str | None = under.evaluation(SPLIT_HELP, default=None, unset=AS_THE_FOLDER, metavar="NAME")
    guard_data: tuple[Path, ...] | None = under.evaluation(
        "BEIR folders of data that are not trained on: what the model lost or won there is in the report",
        default=None,
        unset="not looked at",
        metavar="DIR",
    )
    keep_base: float = under.evaluation(
        "share, 0 to 1, of the base model's weights in the model that is saved: w = X base + (1 - X) tuned",
        default=0.0,
        least=0,
        most=1,
    )
    eval_steps: int | None = under.evaluation(
        "evaluate every N steps", default=None, unset="at the end of each epoch", least=1
    )
    save_steps: int = under.evaluation("write a checkpoint every N steps", default=500, least=1)
    keep_checkpoints: int = under.evaluation("newest checkpoints kept", default=2, least=1)
    resume: str = under.evaluation(
        "auto: go on from the newest whole checkpoint in --output-dir; never: refuse a folder that is not empty",
        default="auto",
        choices=("auto", "never"),
    )

    precision: str = under.running(
        "arithmetic of the model; auto: bf16 autocast where the processor has it, else fp32",
        default="auto",
        choices=PRECISIONS,
    )
    device: str = under.running(DEVICE_HELP, default="auto", choices=DEVICES)
    memory_budget: int | None = under.running(
        "most memory that each process may take, such as 1.5GB; on a GPU, of its memory",
        default=None,
        unset="activations of 6,144 tokens, at most half of the memory; on a GPU, most of what is free",
        metavar="SIZE",
        convert=parse_size,
    )
    gradient_checkpointing: bool = under.running(
        "recompute activations in the backward pass: less memory, more time", default=False
    )
    on_bad_row: str = under.running(BAD_ROW_HELP, default="stop", choices=ON_BAD_ROW)
    on_nonfinite: str = under.running(
        "stop at a loss or gradient that is not finite, or skip that step and count it; the batch is named",
        default="stop",
        choices=ON_NONFINITE,
    )
    max_nonfinite: int = under.running(
        "with --on-nonfinite skip: most steps in a row that are skipped", default=10, least=1
    )
    seed: int = under.running("whole number that decides order, sampling and dropout", default=42, least=0)

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
