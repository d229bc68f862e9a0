"""Options of `biencoder train`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from biencoder.config.choices import (
    ADAPTER,
    ATTENTIONS,
    AUTO,
    COMBINED,
    DISTILLATIONS,
    FLOPS,
    HEADS,
    HIGHEST_TEMPERATURE,
    KL,
    LINEAR,
    LORA_SAVES,
    MERGED,
    MIXES,
    OFF,
    ON_NONFINITE,
    RESUMES,
    SCHEDULES,
    SHARDS,
    SIZE,
    SPARSE,
    SPARSITY_NORMS,
    STOP,
    TRACKERS,
)
from biencoder.config.data import DataSet, data_sets_of
from biencoder.config.headings import EVALUATION, LOSS, MODEL, OPTIMIZER, REQUIRED, RESULT, RUNNING, TRAINED
from biencoder.config.options import Config, Option
from biencoder.config.shared import (
    A_BEIR_FOLDER,
    DATA_FILES,
    SPLIT_HELP,
    USUAL_SPLIT,
    Device,
    ModelName,
    Normalize,
    OnBadRow,
    Pooling,
    Precision,
    ScoresOutOf,
    TrustRemoteCode,
    refuse_split_alone,
)
from biencoder.config.values import parse_dims, parse_share, parse_size, parse_switch, parse_weights
from biencoder.errors import UserError

_OWN = "the model's own"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """`biencoder train`, and the argument of `biencoder.train`."""

    model: ModelName
    train_data: Annotated[tuple[Path | DataSet, ...], Option(f"training data: {DATA_FILES}", REQUIRED, metavar="FILE")]
    output_dir: Annotated[
        Path, Option("folder for the trained model; created if it does not exist", REQUIRED, metavar="DIR")
    ]

    continue_from: Annotated[
        Path | None,
        Option(
            "folder of a finished run to train further, in the place of --model: start from its best weights and the "
            "state of its optimizer",
            MODEL,
            unset="start from --model",
            metavar="RUN",
        ),
    ] = None
    pooling: Pooling = AUTO
    normalize: Normalize = None
    query_prompt: Annotated[
        str | None, Option("text to put before every query; '' for no text", MODEL, unset=_OWN, metavar="TEXT")
    ] = None
    passage_prompt: Annotated[
        str | None, Option("text to put before every passage; '' for no text", MODEL, unset=_OWN, metavar="TEXT")
    ] = None
    query_max_len: Annotated[
        int,
        Option("maximum query length in tokens, with prompt and special tokens; the rest is cut off", MODEL, least=3),
    ] = 64
    passage_max_len: Annotated[
        int,
        Option("maximum passage length in tokens, with prompt and special tokens; the rest is cut off", MODEL, least=3),
    ] = 256
    dropout: Annotated[float | None, Option("dropout probability in training", MODEL, unset=_OWN, least=0, below=1)] = (
        None
    )
    attention: Annotated[
        str | None,
        Option(
            "what a decoder's tokens attend to: the text before them, or the whole text",
            MODEL,
            unset=_OWN,
            choices=ATTENTIONS,
        ),
    ] = None
    trust_remote_code: TrustRemoteCode = False

    heads: Annotated[
        str | None,
        Option(
            "what the model makes of a text; dense: one vector; sparse: a weight for each word; multi: a vector for "
            "each token, compared by the best match of each (ColBERT); with commas: several of these (BGE-M3)",
            TRAINED,
            unset="as the model's files say, otherwise dense",
            choices=(*HEADS, *COMBINED),
        ),
    ] = None
    head_weights: Annotated[
        tuple[float, ...] | None,
        Option(
            "with several heads: weights of their similarities, such as 1,0.3,1, in the sum that is searched by",
            TRAINED,
            unset="as the model's files say, otherwise 1 for dense, 0.3 for sparse, 1 for multi",
            metavar="X",
            convert=parse_weights,
        ),
    ] = None
    query_expansion: Annotated[
        int | None,
        Option(
            "with vectors for tokens: cut queries to N tokens, and fill shorter ones with mask tokens, whose vectors "
            "are compared too",
            TRAINED,
            unset=_OWN,
            least=1,
        ),
    ] = None
    expand_words: Annotated[
        bool,
        Option(
            "with --heads sparse: give weights to words that a text does not have too, by the model's masked-language "
            "head (SPLADE)",
            TRAINED,
        ),
    ] = False
    query_table: Annotated[
        bool,
        Option(
            "with a head sparse alone: take the weights of a query's words from a table, so that a query needs no "
            "model; it starts with the words' inverse document frequency in your passages",
            TRAINED,
        ),
    ] = False
    skip_punctuation: Annotated[
        bool, Option("with --heads multi: keep no vector for the punctuation of a passage", TRAINED)
    ] = True
    freeze_embeddings: Annotated[bool, Option("do not train the embeddings", TRAINED)] = False
    freeze_layers: Annotated[int, Option("do not train the embeddings and the first N layers", TRAINED, least=0)] = 0
    add_dense: Annotated[
        int | None,
        Option(
            "add a linear layer after the pooling, or for each token, which makes vectors of N dimensions",
            TRAINED,
            unset="no layer and the model's own dimensions; 128 with a new head multi",
            least=1,
        ),
    ] = None
    freeze_dense: Annotated[bool, Option("do not train the linear layers after the pooling", TRAINED)] = False
    lora_rank: Annotated[
        int | None,
        Option(
            "train a LoRA adapter of rank N beside each linear layer, and no other weights",
            TRAINED,
            unset="no LoRA; train all weights",
            least=1,
        ),
    ] = None
    lora_alpha: Annotated[
        float | None, Option("scale LoRA's output by X / --lora-rank", TRAINED, unset="twice --lora-rank", above=0)
    ] = None
    lora_save: Annotated[
        str,
        Option(
            "what to save; merged: a complete model; adapter: only LoRA's weights and the base model's name",
            TRAINED,
            choices=LORA_SAVES,
        ),
    ] = MERGED

    batch_size: Annotated[
        int,
        Option(
            "queries per optimizer step over all ranks; they set the number of negatives, not the memory", LOSS, least=1
        ),
    ] = 64
    group_size: Annotated[
        int, Option("passages per query: 1 positive and up to N-1 of its hard negatives", LOSS, least=1)
    ] = 8
    cluster_size: Annotated[
        int,
        Option(
            "build batches from clusters of N rows whose queries the base model finds similar, so that they are hard "
            "negatives for each other; 1: random rows",
            LOSS,
            least=1,
        ),
    ] = 16
    mix: Annotated[
        str,
        Option(
            "how often to draw each data set: by its size, the square root of its size, or equally", LOSS, choices=MIXES
        ),
    ] = SIZE
    temperature: Annotated[
        float | None,
        Option(
            "divide similarities by X in the loss",
            LOSS,
            unset="0.05; 0.02 with a head multi; always 1.0 if vectors are not normalised",
            above=0,
        ),
    ] = None
    in_batch_negatives: Annotated[
        bool, Option("use the passages of the batch's other queries as negatives too", LOSS)
    ] = True
    negatives_cross_device: Annotated[bool, Option("share negatives among all ranks under torchrun", LOSS)] = True
    mask_false_negatives: Annotated[
        bool, Option("do not use a passage as a negative if it equals a known positive of the query", LOSS)
    ] = True
    two_way: Annotated[
        bool | None,
        Option(
            "learn to find the query for a passage too; each direction counts half",
            LOSS,
            unset="on with in-batch negatives",
        ),
    ] = None
    head_loss_weights: Annotated[
        tuple[float, ...] | None,
        Option(
            "with several heads: weights of their losses; the loss of their sum has the weight 1",
            LOSS,
            unset="1 for dense, 0.1 for sparse, 1 for multi",
            metavar="X",
            convert=parse_weights,
        ),
    ] = None
    self_distillation: Annotated[
        bool, Option("with several heads: each also learns from the scores of their sum", LOSS)
    ] = True
    sparsity: Annotated[
        float,
        Option(
            "with a head sparse: weight of a loss on the weights of words, so that more of them become 0; it rises "
            "over the first third of the steps; 0: none",
            LOSS,
            least=0,
        ),
    ] = 0.0
    sparsity_norm: Annotated[
        str,
        Option(
            "with --sparsity: loss on the weights of words; flops: the sum of their squared means, which counts words "
            "in many texts most; l1: the mean of their sums",
            LOSS,
            choices=SPARSITY_NORMS,
        ),
    ] = FLOPS
    dims: Annotated[
        tuple[int, ...] | None,
        Option(
            "dimensions, such as 256,128,64, to which you may cut vectors later; the model learns each of them and "
            "the full size",
            LOSS,
            unset="the full size only",
            metavar="N",
            convert=parse_dims,
        ),
    ] = None
    guide: Annotated[
        str | None,
        Option(
            "second model that removes doubtful negatives: passages that it scores at least as high as the positive",
            LOSS,
            unset="none",
            metavar="MODEL",
        ),
    ] = None
    guide_margin: Annotated[
        float, Option("with --guide: also remove passages that score up to X below the positive", LOSS, least=0)
    ] = 0.0
    mine_negatives: Annotated[
        int, Option("mine N hard negatives for each row with the base model before training; 0: none", LOSS, least=0)
    ] = 0
    refresh_negatives: Annotated[
        int | None,
        Option("mine the negatives again every N epochs, with the model trained so far", LOSS, unset="never", least=1),
    ] = None
    distillation: Annotated[
        str,
        Option(
            "loss against pos_scores and neg_scores, for rows that have both; kl: divergence of the two distributions "
            "over the group; margin-mse: squared error of the margins, for scores on the scale of similarity over "
            "temperature",
            LOSS,
            choices=DISTILLATIONS,
        ),
    ] = KL
    distillation_weight: Annotated[
        float, Option("factor on the distillation loss, which is added to the contrastive loss", LOSS, least=0)
    ] = 1.0

    learning_rate: Annotated[
        float | None,
        Option(
            "peak learning rate per step",
            OPTIMIZER,
            unset="1e-4 for models up to 384 wide, 5e-5 at 768, lower for wider ones; twice that in runs "
            "of 20 to 100 steps if the model is averaged with its base (--keep-base), 10 times with --lora-rank; "
            "1e-2 for static models",
            above=0,
        ),
    ] = None
    schedule: Annotated[
        str, Option("how the learning rate falls to 0 after the warm-up", OPTIMIZER, choices=SCHEDULES)
    ] = LINEAR
    epochs: Annotated[
        int | None,
        Option(
            "passes over the training data",
            OPTIMIZER,
            unset="1; for small data as many as make 50 steps, at most 10",
            least=1,
        ),
    ] = None
    max_steps: Annotated[
        int | None,
        Option(
            "stop after this many optimizer steps, whatever --epochs says",
            OPTIMIZER,
            unset="as many as --epochs takes",
            least=1,
        ),
    ] = None
    warmup_ratio: Annotated[
        float, Option("share of the steps, 0 to 1, in which the learning rate rises from 0", OPTIMIZER, least=0, most=1)
    ] = 0.1
    weight_decay: Annotated[float, Option("AdamW's weight decay, for matrices only", OPTIMIZER, least=0)] = 0.01
    max_grad_norm: Annotated[float, Option("clip the gradient to this L2 norm", OPTIMIZER, above=0)] = 1.0

    eval_data: Annotated[
        Path | None,
        Option(A_BEIR_FOLDER, EVALUATION, unset="a part of the training data that is never trained on", metavar="DIR"),
    ] = None
    eval_split: Annotated[str | None, Option(SPLIT_HELP, EVALUATION, unset=USUAL_SPLIT, metavar="NAME")] = None
    guard_data: Annotated[
        tuple[Path, ...] | None,
        Option(
            "BEIR folders with data that you do not train on; the report shows what the model lost or gained on each",
            EVALUATION,
            unset="none",
            metavar="DIR",
        ),
    ] = None
    general_guard: Annotated[
        bool,
        Option(
            "the report also shows what the model lost or gained on a small collection of general English, which comes "
            "with biencoder",
            EVALUATION,
        ),
    ] = True
    keep_base: Annotated[
        float | str,
        Option(
            "share, 0 to 1, of the base model's weights in the saved model: w = X base + (1 - X) tuned; auto: the "
            "least with which the model loses at most 0.005 nDCG@10 on general English",
            EVALUATION,
            metavar="X",
            convert=parse_share,
        ),
    ] = AUTO
    cross_validate: Annotated[
        bool,
        Option(
            "where a tenth of the queries is fewer than 300 and cannot tell whether the model got better, train five "
            "more models, each without a fifth of the queries, and ask it those; it takes about four times as long",
            EVALUATION,
        ),
    ] = True
    eval_steps: Annotated[
        int | None,
        Option("evaluate every N steps", EVALUATION, unset="after each epoch, and 25 steps or more apart", least=1),
    ] = None
    save_steps: Annotated[int, Option("save a checkpoint every N steps", EVALUATION, least=1)] = 500
    keep_checkpoints: Annotated[int, Option("how many of the newest checkpoints to keep", EVALUATION, least=1)] = 2
    resume: Annotated[
        str,
        Option(
            "auto: continue from the newest complete checkpoint in --output-dir; never: refuse a non-empty folder",
            EVALUATION,
            choices=RESUMES,
        ),
    ] = AUTO

    precision: Precision = AUTO
    device: Device = AUTO
    deterministic: Annotated[
        bool,
        Option(
            "on a GPU, use only algorithms that give the same bits each time, so that a killed run ends with the same "
            "bits as an uninterrupted one; slower. On a CPU it is always so",
            RUNNING,
        ),
    ] = False
    memory_budget: Annotated[
        int | None,
        Option(
            "maximum memory for each process, such as 1.5GB; on a GPU, this limits GPU memory",
            RUNNING,
            unset="room for the activations of 6,144 tokens, at most half of all memory; on a GPU, most of its memory",
            metavar="SIZE",
            convert=parse_size,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool, Option("recompute activations in the backward pass: less memory, more time", RUNNING)
    ] = False
    shard: Annotated[
        str,
        Option(
            "under torchrun, cut weights, gradients and moments over the processes, which gather one layer at a time; "
            "auto: if a process could not hold all of them",
            RUNNING,
            choices=(AUTO, *SHARDS),
            convert=parse_switch,
        ),
    ] = AUTO
    shard_offload: Annotated[
        bool, Option("where weights are sharded, keep them in the host's memory while they wait: slower", RUNNING)
    ] = False
    scores_out_of: ScoresOutOf = 1.0
    on_bad_row: OnBadRow = STOP
    on_nonfinite: Annotated[
        str,
        Option(
            "stop at a loss or gradient that is not finite, or skip that step and count it; both name the batch",
            RUNNING,
            choices=ON_NONFINITE,
        ),
    ] = STOP
    max_nonfinite: Annotated[
        int, Option("with --on-nonfinite skip: maximum number of steps skipped in a row", RUNNING, least=1)
    ] = 10
    log_to: Annotated[
        tuple[str, ...] | None,
        Option(
            "also show the figures of metrics.jsonl in one or more trackers; a tracker never stops or delays the run",
            RUNNING,
            unset="none",
            choices=TRACKERS,
        ),
    ] = None
    push_to_hub: Annotated[
        str | None,
        Option(
            "after the run, send the model and its card to this repository on the Hugging Face Hub; the token is that "
            "of HF_TOKEN or hf auth login",
            RESULT,
            unset="the model stays here",
            metavar="NAME",
        ),
    ] = None
    private: Annotated[bool, Option("with --push-to-hub: a new repository is one that nobody else can see", RESULT)] = (
        False
    )
    dry_run: Annotated[
        bool,
        Option(
            "do everything but train: check the data, load the model, measure a few steps, and say how much time and "
            "memory the run takes; write nothing",
            RUNNING,
        ),
    ] = False
    seed: Annotated[int, Option("random seed for order, sampling and dropout", RUNNING, least=0)] = 42

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The model of a run that continues another one is that one's."""
        run = values.get("continue_from")
        return values if run is None else {"model": str(run)} | values

    def check(self) -> None:
        """Refuse options that do not go together."""
        if self.continue_from is not None and Path(self.model) != self.continue_from:
            raise UserError(
                f"--model {self.model}: --continue-from {self.continue_from} names the model already; leave one out"
            )
        refuse_split_alone(self.eval_split, self.eval_data)
        if self.private and self.push_to_hub is None:
            raise UserError("--private needs --push-to-hub, which is not given")
        if self.shard_offload and self.shard == OFF:
            raise UserError(f"--shard-offload needs sharded weights, and --shard is {OFF}")
        self._check_loss()
        self._check_saved_weights()
        for data_set in self.data_sets:
            data_set.check_within(self.batch_size, cosines=self.normalize is not False)

    def _check_loss(self) -> None:
        if self.normalize is not False and (self.temperature or 0) > HIGHEST_TEMPERATURE:
            raise UserError(
                f"--temperature {self.temperature:g} is above {HIGHEST_TEMPERATURE}: cosines differ by at most 2, so "
                "the loss could hardly tell a positive from a negative; use 0.01 to 0.1, or --no-normalize"
            )
        if self.two_way and not self.in_batch_negatives:
            raise UserError(
                "--two-way compares a passage with the batch's other queries; it needs --in-batch-negatives"
            )
        if self.refresh_negatives is not None and not self.mine_negatives:
            raise UserError(f"--refresh-negatives {self.refresh_negatives} needs --mine-negatives, which is not given")
        if self.mine_negatives and self.group_size == 1:
            raise UserError(f"--mine-negatives {self.mine_negatives}: a --group-size of 1 has no room for negatives")
        if self.guide_margin and self.guide is None:
            raise UserError(f"--guide-margin {self.guide_margin:g} needs --guide, which is not given")
        if self.sparsity_norm != FLOPS and not self.sparsity:
            raise UserError(f"--sparsity-norm {self.sparsity_norm} needs --sparsity, which is not given")
        if self.group_size == 1 and (self.batch_size == 1 or not self.in_batch_negatives):
            why = "--batch-size 1" if self.in_batch_negatives else "--no-in-batch-negatives"
            raise UserError(f"--group-size 1 with {why} leaves no negatives to learn from; use --group-size 2 or more")

    def _check_saved_weights(self) -> None:
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_save == ADAPTER):
            flag = f"--lora-save {ADAPTER}" if self.lora_alpha is None else f"--lora-alpha {self.lora_alpha:g}"
            raise UserError(f"{flag} needs --lora-rank, which is not given")
        if self.keep_base not in {0, AUTO} and self.lora_save == ADAPTER:
            raise UserError(f"--keep-base averages complete models; it needs --lora-save {MERGED}")

    @property
    def chooses_share(self) -> bool:
        """Whether the share of the base is chosen after training, by a guard."""
        return self.keep_base == AUTO and bool(self.general_guard or self.guard_data) and self.lora_save == MERGED

    @property
    def averages(self) -> bool:
        """Whether the saved model is, or may be, an average of the tuned weights and the base's."""
        return self.chooses_share or self.keep_base not in {0, AUTO}

    @property
    def data_sets(self) -> tuple[DataSet, ...]:
        """The data sets of ``train_data``, which share no batch, with the run's settings for what they leave open.

        If vectors are not normalised, all have the run's temperature.
        """
        found = data_sets_of(self.train_data)
        if self.normalize is False and self.heads != SPARSE:
            found = tuple(replace(data_set, temperature=None) for data_set in found)
        return tuple(data_set.filled_from(self) for data_set in found)
