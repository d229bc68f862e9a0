"""Options that several commands have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from biencoder.config.choices import AUTO, DEVICES, FP32, HEADS, ON_BAD_ROW, POOLINGS, PRECISIONS
from biencoder.config.headings import INPUT, MODEL, REQUIRED, RUNNING
from biencoder.config.options import Config, Option
from biencoder.errors import UserError

A_MODEL = "a folder, or a name on the Hugging Face Hub"
A_BEIR_FOLDER = (
    "BEIR folder to evaluate on: corpus.jsonl, queries.jsonl and qrels/; or mteb:NAME, a retrieval task of MTEB"
)
DATA_FILES = (
    "JSON Lines (also .gz), Parquet or CSV files, or folders of such files; or hf:NAME[:CONFIG][:SPLIT], a data set on "
    "the Hugging Face Hub"
)
SPLIT_HELP = "which file of the evaluation folder's qrels/ to use"
EVAL_FLAGS = ("--eval-split", "--eval-data")
USUAL_SPLIT = "test, or the only file there"
AS_THE_MODEL_SAYS = "as the model's files say"

ModelName = Annotated[str, Option(f"the model: {A_MODEL}", REQUIRED, metavar="MODEL")]
TrainData = Annotated[tuple[Path, ...], Option(f"training data: {DATA_FILES}", REQUIRED, metavar="FILE")]
Pooling = Annotated[
    str,
    Option(
        "how token vectors become one vector; auto: as the model's sentence-transformers files say, otherwise last for "
        "decoders and cls for other models",
        MODEL,
        choices=(AUTO, *POOLINGS),
    ),
]
Normalize = Annotated[
    bool | None,
    Option(
        "scale vectors to length 1, so that their similarity is the cosine",
        MODEL,
        unset=f"{AS_THE_MODEL_SAYS}, otherwise on",
    ),
]
MaxLength = Annotated[
    int | None,
    Option(
        "maximum text length in tokens, with prompt and special tokens; the rest is cut off",
        MODEL,
        unset=AS_THE_MODEL_SAYS,
        least=3,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    Option(
        "run Python code that comes with the model, and let its configuration choose attention kernels, which may come "
        "from the Hub; such code can do anything that you can do, so read it first",
        MODEL,
    ),
]
Precision = Annotated[
    str,
    Option(
        "number format of the model's arithmetic (autocast); auto: bf16 where the hardware has it, fp16 on older GPUs, "
        "otherwise fp32",
        RUNNING,
        choices=(AUTO, *PRECISIONS),
    ),
]
Device = Annotated[str, Option("where to compute; auto: on a GPU if there is one", RUNNING, choices=(AUTO, *DEVICES))]
OnBadRow = Annotated[
    str, Option("stop at a row that cannot be used, or skip such rows and count them", RUNNING, choices=ON_BAD_ROW)
]


ScoresOutOf = Annotated[
    float,
    Option(
        "highest score of two sentences; scores are divided by it, and must then lie between -1 and 1",
        INPUT,
        above=0,
    ),
]


def refuse_split_alone(split: str | None, data: Path | None, flags: tuple[str, str] = EVAL_FLAGS) -> None:
    """Raise `UserError` if a split is given without the folder that it is in; ``flags`` name the two."""
    if split is not None and data is None:
        raise UserError(f"{flags[0]} {split} needs {flags[1]}, which is not given")


OneHead = Annotated[
    str | None, Option("head to use of a model that has several", MODEL, unset="all together", choices=HEADS)
]


@dataclass(frozen=True, kw_only=True)
class EncodingOptions(Config):
    """How the commands that encode use a model."""

    pooling: Pooling = AUTO
    normalize: Normalize = None
    max_length: MaxLength = None
    dim: Annotated[
        int | None,
        Option(
            "keep the first N dimensions of each vector, for models trained with --dims", MODEL, unset="all", least=1
        ),
    ] = None
    pool_tokens: Annotated[
        int,
        Option(
            "keep one vector for every N tokens of a passage, for models with a vector for each token; the nearest are "
            "merged",
            MODEL,
            least=1,
        ),
    ] = 1
    head: OneHead = None
    trust_remote_code: TrustRemoteCode = False
    precision: Precision = FP32
    device: Device = AUTO


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(EncodingOptions):
    """What the commands that encode with one model have in common."""

    model: ModelName
