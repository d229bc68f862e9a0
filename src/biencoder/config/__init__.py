"""What can be asked of each command: one frozen, validated dataclass a command, no logic.

The flags of the command line, the keys of ``--config`` and the arguments in Python are these fields and nothing else.
Standard library only, so that ``biencoder --help`` is instant.
"""

from biencoder.config.data import CheckConfig, DataSet, PairsConfig, data_sets_of
from biencoder.config.models import DemoConfig, DistillConfig, DoctorConfig, ExportConfig, MergeConfig, ReportConfig
from biencoder.config.negatives import MineConfig, MiningOptions, ScoreConfig
from biencoder.config.retrieval import DiffConfig, EncodeConfig, EvaluateConfig, SearchConfig, ServeConfig
from biencoder.config.train import TrainConfig

__all__ = [
    "CheckConfig",
    "DataSet",
    "DemoConfig",
    "DiffConfig",
    "DistillConfig",
    "DoctorConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "ExportConfig",
    "MergeConfig",
    "MineConfig",
    "MiningOptions",
    "PairsConfig",
    "ReportConfig",
    "ScoreConfig",
    "SearchConfig",
    "ServeConfig",
    "TrainConfig",
    "data_sets_of",
]
