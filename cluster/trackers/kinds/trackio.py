"""trackio: a local dashboard, or a Space of the hub. `TRACKIO_PROJECT`, `TRACKIO_SPACE_ID` and `TRACKIO_DIR` are
respected."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.config.registries import TRACKERS
from cluster.trackers.tracker import PROJECT, TrackedRun, Tracker
from speech.runtime.importing import import_extra


@TRACKERS.register("trackio")
class TrackioTracker(Tracker):
    """Kept in trackio's folder of this machine, unless a Space is named; `trackio show` opens the dashboard."""

    def __init__(self, run: TrackedRun) -> None:
        self._trackio = import_extra("trackers", "trackio", "trackio", "the tracker trackio")
        # Its runs are known by name, and a folder of ours may be moved: the name is what it was at first.
        self.id = run.known_as or run.name
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.id,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        table = self._trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table}, step=step)

    def audio(self, name: str, wave: np.ndarray, sample_rate: int, step: int) -> None:
        samples = (wave.clip(-1, 1) * 32767).astype(np.int16)
        self._run.log({name: self._trackio.Audio(samples, sample_rate=sample_rate)}, step=step)

    def close(self, summary: Mapping[str, float]) -> None:
        if summary:
            steps = int(summary.get("steps", 0))
            self._run.log({f"summary/{key}": value for key, value in summary.items()}, step=steps)
        self._run.finish()
