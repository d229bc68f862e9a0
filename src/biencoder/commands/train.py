"""``biencoder train``: fine-tune a model; its report is on the terminal and beside the model."""

from biencoder.config import TrainConfig
from biencoder.training.run import train


def run(config: TrainConfig) -> None:
    """The command: train; the run says what it does."""
    train(config)
