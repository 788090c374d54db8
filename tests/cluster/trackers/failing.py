"""Trackers of a user that go wrong, each in its way."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.trackers.tracker import TrackedRun, Tracker

RELEASE = threading.Event()


class Kept(Tracker):
    """Keeps what it is given, by the run's name."""

    calls: dict[str, list[tuple[Any, ...]]] = {}

    def __init__(self, run: TrackedRun) -> None:
        self.id = run.known_as or "first"
        self._calls = self.calls.setdefault(run.name, [])
        self._calls.append(("begin", run.known_as, run.config["seed"]))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._calls.append(("metrics", step, dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self._calls.append(("table", name, tuple(columns), len(rows), step))

    def audio(self, name: str, wave: np.ndarray, sample_rate: int, step: int) -> None:
        self._calls.append(("audio", name, wave.shape, sample_rate, step))

    def close(self, summary: Mapping[str, float]) -> None:
        self._calls.append(("close", dict(summary)))


class Refuses(Kept):
    def __init__(self, run: TrackedRun) -> None:
        raise ConnectionError("no server answers")


class Breaks(Kept):
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if step == 2:
            raise RuntimeError("the server has closed the connection")
        super().metrics(step, values)


class Hangs(Kept):
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        RELEASE.wait()
