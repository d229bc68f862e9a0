"""``biencoder train``: fine-tunes a model, and reports on the terminal and beside the model."""

from biencoder.config import TrainConfig
from biencoder.training.run import train


def run(config: TrainConfig) -> None:
    """The command: train; the run says what it does."""
    train(config)
