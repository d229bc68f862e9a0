"""The trackers by their names, each imported when it is opened."""

import importlib

from biencoder.config.choices import MLFLOW, TENSORBOARD, TRACKIO, WANDB
from biencoder.training.trackers.tracker import FollowedRun, Tracker

CLASSES = {TENSORBOARD: "TensorBoard", WANDB: "Wandb", TRACKIO: "Trackio", MLFLOW: "Mlflow"}


def open_tracker(name: str, run: FollowedRun) -> Tracker:
    """A run in the tracker of that name."""
    module = importlib.import_module(f"biencoder.training.trackers.{name}")
    tracker: Tracker = getattr(module, CLASSES[name])(run)
    return tracker
