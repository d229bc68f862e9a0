"""biencoder: fine-tune text-embedding models on your own data, and know whether they got better.

``import biencoder`` is instant: PyTorch and transformers are imported when one of the names below is first used. That
also sets the process's memory allocator, see :mod:`biencoder.device.allocator`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from biencoder.config import DataSet, MineConfig, TrainConfig
from biencoder.device.allocator import tune_allocator
from biencoder.errors import UserError

if TYPE_CHECKING:
    from biencoder.bi_encoder import BiEncoderModel
    from biencoder.model.encoder import Encoder
    from biencoder.retrieval.evaluate import evaluate
    from biencoder.retrieval.mining.mine_files import mine_hard_negatives
    from biencoder.training.run import train

__version__ = "0.1.0"
__all__ = [
    "BiEncoderModel",
    "DataSet",
    "Encoder",
    "MineConfig",
    "TrainConfig",
    "UserError",
    "evaluate",
    "mine_hard_negatives",
    "train",
]

_LAZY = {
    "BiEncoderModel": "biencoder.bi_encoder",
    "Encoder": "biencoder.model.encoder",
    "evaluate": "biencoder.retrieval.evaluate",
    "mine_hard_negatives": "biencoder.retrieval.mining.mine_files",
    "train": "biencoder.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'biencoder' has no attribute {name!r}")
    tune_allocator()
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
