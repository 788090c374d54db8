"""MLflow: a server, or a folder. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` are respected."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cluster.config.registries import TRACKERS
from cluster.trackers.tracker import PROJECT, TrackedRun, Tracker
from speech.runtime.importing import import_extra

logger = logging.getLogger(__name__)

AT_ONCE = 100
"""Parameters that MLflow takes in one call; of metrics it takes 1,000."""


@TRACKERS.register("mlflow")
class MlflowTracker(Tracker):
    """Without a server's address everything is kept in `mlruns/` beside the runs' folders (`mlflow ui` shows it).

    Metrics go to MLflow's metrics, tables and sounds to the run's artifacts, one file a step. NaN is left out.
    """

    def __init__(self, run: TrackedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = (run.folder.parent / "mlruns").absolute().as_uri()
            # A folder needs no database; MLflow keeps the format, but wants to be asked for it.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow = import_extra("trackers", "mlflow", "mlflow", "the tracker mlflow")
        self._entities = import_extra("trackers", "mlflow.entities", "mlflow", "the tracker mlflow")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if run.known_as is not None:
            self.id = run.known_as
            self._client.update_run(self.id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
            parameters = [self._entities.Param(key, text) for key, text in flat(run.config).items()]
            for start in range(0, len(parameters), AT_ONCE):
                self._client.log_batch(self.id, params=parameters[start : start + AT_ONCE])
        logger.info("mlflow run %s at %s", self.id, uri)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        known = {key: value for key, value in values.items() if math.isfinite(value)}
        self._client.log_batch(self.id, [self._entities.Metric(key, float(v), now, step) for key, v in known.items()])

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        # The form that MLflow shows as a table.
        content = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_text(self.id, json.dumps(content, ensure_ascii=False), f"{name}/step-{step:06d}.json")

    def audio(self, name: str, wave: np.ndarray, sample_rate: int, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"step-{step:06d}.flac")
            soundfile.write(file, wave, sample_rate)
            self._client.log_artifact(self.id, str(file), name)

    def close(self, summary: Mapping[str, float]) -> None:
        if summary:
            # Metrics of their own: a step's may have the same names.
            self.metrics(int(summary.get("steps", 0)), {f"summary/{key}": value for key, value in summary.items()})
        self._client.set_terminated(self.id, "FINISHED" if summary else "FAILED")


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Nested values as texts by dotted key."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {f"{path}{key}": str(value)}
    return found
