"""All trackers of a run, behind a thread: a tracker that is slow or fails neither delays a step nor stops a run."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.registries import TRACKERS
from cluster.trackers.tracker import TrackedRun, Tracker
from speech.errors import UserError

logger = logging.getLogger(__name__)

BACKLOG = 10_000
"""Calls that may wait for a tracker; more are not kept."""
CLOSE_S = 120.0
"""Longest wait for a tracker at the end of a run, in seconds."""
IDS = "trackers.json"
"""Of a run's folder: what the run is called in each tracker."""

Call = Callable[[Tracker], None]


class Trackers:
    """Gives everything to every tracker, each in a thread of its own.

    Args:
        names: of the trackers (`trackers` of the configuration).
        name: of the run.
        folder: of the run.
        config: the resolved configuration, nested.

    Raises:
        UserError: a name is unknown, or a tracker of the user's own cannot be imported.
    """

    def __init__(self, names: Sequence[str], name: str, folder: Path, config: Mapping[str, Any]) -> None:
        ids = _Ids(folder / IDS)
        runs = {kind: TrackedRun(name, folder, config, ids.known.get(kind)) for kind in names}
        self._lanes = [_Lane(kind, TRACKERS.find(kind), run, ids) for kind, run in runs.items()]

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a finished step."""
        self._all(lambda tracker: tracker.metrics(step, values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table of texts and numbers."""
        self._all(lambda tracker: tracker.table(name, columns, rows, step))

    def audio(self, name: str, wave: np.ndarray, sample_rate: int, step: int) -> None:
        """A sound: float32 (samples,) in [-1, 1] at `sample_rate` Hz."""
        self._all(lambda tracker: tracker.audio(name, wave, sample_rate, step))

    def close(self, summary: Mapping[str, Any]) -> None:
        """Let the trackers take what they were given, for at most `CLOSE_S`, and end them.

        Args:
            summary: what `summary.json` holds; its numbers are given to the trackers.
        """
        numbers = numbers_of(summary)
        self._all(lambda tracker: tracker.close(numbers))
        for lane in self._lanes:
            lane.join()
        self._lanes = []

    def _all(self, call: Call) -> None:
        for lane in self._lanes:
            lane.put(call)


class _Ids:
    """`trackers.json`, to which the lanes write."""

    def __init__(self, file: Path) -> None:
        self._file, self._guard = file, threading.Lock()
        self.known: dict[str, str] = {}
        if not file.is_file():
            return
        try:
            self.known = dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            logger.warning("%s is damaged (%s): trackers begin this run anew", file, error)

    def set(self, kind: str, name: str) -> None:
        with self._guard:
            if self.known.get(kind) != name:
                self.known[kind] = name
                self._file.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")


class _Lane:
    """One tracker and its thread."""

    def __init__(self, kind: str, make: Callable[[TrackedRun], Tracker], run: TrackedRun, ids: _Ids) -> None:
        self._kind, self._make, self._run, self._ids = kind, make, run, ids
        self._calls: queue.Queue[Call | None] = queue.Queue(BACKLOG)
        self._dropped = 0
        # A tracker that waits for a network for ever must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"tracker {kind}", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._dropped:
                logger.warning("tracker %s is %d calls behind: it misses what comes now", self._kind, BACKLOG)
            self._dropped += 1

    def join(self) -> None:
        with suppress(queue.Full):  # said below
            self._calls.put(None, timeout=CLOSE_S)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("tracker %s did not end within %.0f s; the run does not wait", self._kind, CLOSE_S)

    def _work(self) -> None:
        try:
            tracker = self._make(self._run)
            self._ids.set(self._kind, tracker.id)
            while (call := self._calls.get()) is not None:
                call(tracker)
        except UserError as error:
            logger.warning("tracker %s: %s; the run goes on without it", self._kind, error)
        except Exception:  # whatever a tracker's library or server does is not the run's end
            logger.warning("tracker %s has failed; the run goes on without it", self._kind, exc_info=True)
        else:
            return
        while self._calls.get() is not None:
            pass


def numbers_of(values: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The numbers in nested mappings, by dotted key."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{path}{key}"] = value
    return found
