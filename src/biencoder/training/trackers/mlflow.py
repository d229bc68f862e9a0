"""MLflow: the server, database or folder that ``MLFLOW_TRACKING_URI`` names, otherwise MLflow's own default."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from biencoder.training.trackers.tracker import Figures, FollowedRun

EXPERIMENT = "biencoder"  # unless MLFLOW_EXPERIMENT_NAME names another
PARAMETERS, METRICS = 100, 1000  # in one request
LONGEST = 500  # characters of a parameter's value, in all versions


class Mlflow:
    """A run of MLflow."""

    def __init__(self, run: FollowedRun) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # we try again ourselves
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient, get_tracking_uri
        from mlflow.entities import Metric, Param

        self._client: Any = MlflowClient()
        self._metric = Metric
        if run.id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            known = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if known is None else known.experiment_id
            self.id: str = self._client.create_run(number, run_name=run.name).info.run_id
            settings = iter([Param(name, str(value)[:LONGEST]) for name, value in run.config.items()])
            for some in _parts(settings, PARAMETERS):
                self._client.log_batch(self.id, params=some)
        else:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
        self.where = f"run {self.id} at {get_tracking_uri()}"

    def log(self, lines: Sequence[Figures]) -> None:
        """Add figures, many in one request."""
        now = int(1000 * time.time())
        metrics = (
            self._metric(allowed(name), value, now, step) for step, values in lines for name, value in values.items()
        )
        for some in _parts(metrics, METRICS):
            self._client.log_batch(self.id, metrics=some)

    def finish(self, is_complete: bool) -> None:
        """Mark the run as finished or killed."""
        self._client.set_terminated(self.id, "FINISHED" if is_complete else "KILLED")


def allowed(name: str) -> str:
    """The name as MLflow allows it: ``ndcg_at_10`` for ``ndcg@10``."""
    return re.sub(r"[^\w\-. /]", "", name.replace("@", "_at_"))


def _parts(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(items, size)):
        yield some
