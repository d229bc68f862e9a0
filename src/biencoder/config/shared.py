"""What the options of several commands have in common."""

from dataclasses import dataclass
from pathlib import Path

from biencoder.config import headings as under
from biencoder.config.options import Config
from biencoder.errors import UserError

POOLINGS = ("auto", "cls", "mean", "last")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
ON_BAD_ROW = ("stop", "skip")
BAD_ROW_HELP = "stop at a row that cannot be used, or skip and count such rows"
MODEL_HELP = "model folder, or its name on the Hugging Face hub"
DATA_HELP = "JSON lines (.gz too), Parquet or CSV files, or folders of these"
POOLING_HELP = (
    "how token vectors become one; auto: what the model's own sentence-transformers files say, else last for decoders "
    "and cls for the others"
)
DEVICE_HELP = "where to compute; auto: a GPU if there is one"
NORMALIZE_HELP = "scale vectors to length 1, so that similarity is the cosine"
TRUST_HELP = (
    "run Python code that comes with the model, and let its configuration choose attention kernels, also of the hub: "
    "it can do anything that you can; read it before"
)
SPLIT_HELP = "which file of the evaluation folder's qrels/"
AS_THE_FOLDER = "test, or the only one"
AS_THE_MODEL = "what the model says, else on"


def refuse_split_alone(eval_split: str | None, eval_data: Path | None) -> None:
    """Raise `UserError` when a split is named of no folder."""
    if eval_split is not None and eval_data is None:
        raise UserError(f"--eval-split {eval_split}: names a part of --eval-data, which is not given")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """What the commands that encode have in common."""

    model: str = under.needed(MODEL_HELP, metavar="MODEL")
    pooling: str = under.model(POOLING_HELP, default="auto", choices=POOLINGS)
    normalize: bool | None = under.model(NORMALIZE_HELP, default=None, unset=AS_THE_MODEL)
    max_length: int | None = under.model(
        "longest text in tokens, prompt and special tokens included; the rest is cut off",
        default=None,
        unset="what the model says",
        least=3,
    )
    dim: int | None = under.model(
        "keep the first N dimensions of each vector, for models trained with --dims",
        default=None,
        unset="all",
        least=1,
    )
    trust_remote_code: bool = under.model(TRUST_HELP, default=False)
    precision: str = under.running(
        "arithmetic of the model; auto: bf16 where the processor has it, else fp32", default="fp32", choices=PRECISIONS
    )
    device: str = under.running(DEVICE_HELP, default="auto", choices=DEVICES)
