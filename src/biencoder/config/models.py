"""Options of commands about whole models."""

# ruff: noqa: RUF009  (an option is a dataclass field)
from dataclasses import dataclass
from pathlib import Path

from biencoder.config import headings as under
from biencoder.config.options import Config
from biencoder.config.shared import AS_THE_MODEL, MODEL_HELP, NORMALIZE_HELP, POOLING_HELP, POOLINGS, TRUST_HELP
from biencoder.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """`biencoder export`."""

    model: str = under.needed(MODEL_HELP, metavar="MODEL")
    output_dir: Path = under.needed("folder for the exported model; made when missing", metavar="DIR")
    format: str = under.result("what to write", default="sentence-transformers", choices=("sentence-transformers",))
    pooling: str = under.model(POOLING_HELP, default="auto", choices=POOLINGS)
    normalize: bool | None = under.model(NORMALIZE_HELP, default=None, unset=AS_THE_MODEL)
    trust_remote_code: bool = under.model(TRUST_HELP, default=False)


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config):
    """`biencoder merge`."""

    models: tuple[str, ...] = under.needed(
        "two or more models of one architecture: folders, or names on the Hugging Face hub",
        metavar="MODEL",
        positional=True,
    )
    output_dir: Path = under.needed("folder for the merged model; made when missing", metavar="DIR")
    weights: tuple[float, ...] | None = under.result(
        "share of each model, in their order; scaled to sum to 1",
        default=None,
        unset="equal shares",
        metavar="X",
        least=0,
    )
    spherical: bool = under.result(
        "interpolate between two models on the great circle (slerp), tensor by tensor, not on the line", default=False
    )
    trust_remote_code: bool = under.model(TRUST_HELP, default=False)

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

    output_dir: Path = under.result(
        "folder for the data set and the trained model", default=Path("biencoder-demo"), metavar="DIR"
    )
    max_steps: int | None = under.running(
        "end training after this many optimizer steps", default=None, unset="one epoch", least=1
    )
    seed: int = under.running("whole number that decides split, order and dropout", default=42, least=0)
