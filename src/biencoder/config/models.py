"""Options of commands about whole models and runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from biencoder.config.choices import AUTO, FORMATS, FP32, SENTENCE_TRANSFORMERS
from biencoder.config.headings import REQUIRED, RESULT, RUNNING
from biencoder.config.options import Config, Option
from biencoder.config.shared import (
    A_BEIR_FOLDER,
    SPLIT_HELP,
    USUAL_SPLIT,
    Device,
    MaxLength,
    ModelName,
    Normalize,
    Pooling,
    Precision,
    TrustRemoteCode,
    refuse_split_alone,
)
from biencoder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """`biencoder export`."""

    model: ModelName
    output_dir: Annotated[
        Path, Option("folder for the exported model; created if it does not exist", REQUIRED, metavar="DIR")
    ]
    format: Annotated[
        str,
        Option(
            "format to write; onnx, openvino: the sentence-transformers folder, with a folder onnx or openvino in it",
            RESULT,
            choices=FORMATS,
        ),
    ] = SENTENCE_TRANSFORMERS
    int8: Annotated[bool, Option("with --format onnx or openvino: also write a file with int8 weights", RESULT)] = False
    data: Annotated[
        Path | None,
        Option(
            f"with --format onnx or openvino: compare nDCG@10 too; {A_BEIR_FOLDER}",
            RESULT,
            unset="compare vectors",
            metavar="DIR",
        ),
    ] = None
    split: Annotated[str | None, Option(SPLIT_HELP, RESULT, unset=USUAL_SPLIT, metavar="NAME")] = None
    max_length: MaxLength = None
    pooling: Pooling = AUTO
    normalize: Normalize = None
    merge_adapter: Annotated[
        bool,
        Option(
            "if the model is a LoRA adapter: add it to the weights of its base and write a whole model; "
            "--no-merge-adapter: write an adapter",
            RESULT,
        ),
    ] = True
    trust_remote_code: TrustRemoteCode = False

    def check(self) -> None:
        """Refuse what only files of other runtimes have, and what they cannot have."""
        runtimes = [name for name in FORMATS if name != SENTENCE_TRANSFORMERS]
        for flag, given in (("--int8", self.int8), ("--data", self.data is not None)):
            if given and self.format not in runtimes:
                raise UserError(f"{flag} needs --format {' or '.join(runtimes)}")
        if not self.merge_adapter and self.format in runtimes:
            raise UserError(
                f"--no-merge-adapter: --format {self.format} writes whole models only; leave one of them out"
            )
        refuse_split_alone(self.split, self.data, ("--split", "--data"))


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """`biencoder distill`."""

    model: ModelName
    output_dir: Annotated[
        Path, Option("folder for the static model; created if it does not exist", REQUIRED, metavar="DIR")
    ]
    dim: Annotated[int, Option("dimensions of a vector", RESULT, least=1)] = 256
    texts: Annotated[
        Path | None,
        Option(
            "texts that show how frequent each token is, such as your passages: one per line, or JSON Lines with "
            "'text'; also .gz",
            RESULT,
            unset="the order of the vocabulary shows it",
            metavar="FILE",
        ),
    ] = None
    pooling: Pooling = AUTO
    normalize: Normalize = None
    trust_remote_code: TrustRemoteCode = False
    precision: Precision = FP32
    device: Device = AUTO


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config):
    """`biencoder merge`."""

    models: Annotated[
        tuple[str, ...],
        Option(
            "two or more models of one architecture: folders, or names on the Hugging Face Hub",
            REQUIRED,
            metavar="MODEL",
            positional=True,
        ),
    ]
    output_dir: Annotated[
        Path, Option("folder for the merged model; created if it does not exist", REQUIRED, metavar="DIR")
    ]
    weights: Annotated[
        tuple[float, ...] | None,
        Option(
            "share of each model, in the order of the models; scaled to sum to 1",
            RESULT,
            unset="equal shares",
            metavar="X",
            least=0,
        ),
    ] = None
    spherical: Annotated[
        bool,
        Option("interpolate two models along the great circle (slerp), tensor by tensor, not along the line", RESULT),
    ] = False
    trust_remote_code: TrustRemoteCode = False

    def check(self) -> None:
        """Refuse weights that do not fit the models, and an arc between more than two."""
        if len(self.models) < 2:
            raise UserError(f"MODEL: {self.models[0]} alone cannot be merged; name two or more models")
        if self.weights is not None and len(self.weights) != len(self.models):
            raise UserError(f"--weights: {len(self.weights)} weights for {len(self.models)} models; give one for each")
        if self.weights is not None and not any(self.weights):
            raise UserError("--weights: all are 0; give at least one model a share")
        if self.spherical and len(self.models) != 2:
            raise UserError(f"--spherical interpolates between two models, not {len(self.models)}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """`biencoder report`."""

    runs: Annotated[
        tuple[Path, ...],
        Option("the --output-dir of one or more finished runs", REQUIRED, metavar="RUN", positional=True),
    ]
    output: Annotated[
        Path | None,
        Option(
            "HTML file to write",
            RESULT,
            unset="report.html in the folder of the run; for several runs, in the current folder",
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """`biencoder doctor`, which has no options."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """`biencoder demo`."""

    output_dir: Annotated[Path, Option("folder for the data set and the trained model", RESULT, metavar="DIR")] = Path(
        "biencoder-demo"
    )
    max_steps: Annotated[
        int | None, Option("stop training after this many optimizer steps", RUNNING, unset="one epoch", least=1)
    ] = None
    seed: Annotated[int, Option("random seed for split, order and dropout", RUNNING, least=0)] = 42
