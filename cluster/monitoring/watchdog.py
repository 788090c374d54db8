"""Notices that a run no longer moves, and says what it waits for. It only reports: time-outs are what ends a phase."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.monitoring.periodic import Periodic
from cluster.monitoring.phases import PhaseTimer

WAITS_FOR = {
    "encode": "encoder actors",
    "generate": "engine actors",
    "reward": "reward actors",
    "learn": "learner ranks",
    "publish": "learner ranks and engine actors",
    "evaluate": "encoder and engine actors",
    "recover": "learner ranks, which are started anew",
    "checkpoint": "learner ranks, which write to the disk",
}
"""Who does the work of a phase."""

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A phase in progress: its name and how long it has lasted, in seconds."""

    phase: str
    seconds: float


class StallDetector:
    """Decides when to report. Pure: told what is seen and what time it is.

    Progress is a phase or a step that begins. A stall is reported after `limit_s`, and again each time that its length
    has doubled, so that a night's stall is a few lines.
    """

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._next_s = limit_s
        self._since = now
        self._seen: object = None

    def look(self, progress: object, waiting: Sequence[Waiting], now: float) -> str | None:
        """
        Args:
            progress: anything that differs after progress from what it was before.
            waiting: phases in progress.
            now: seconds on a clock that only moves forward.

        Returns:
            The report, when one is due.
        """
        if progress != self._seen:
            self._seen, self._since, self._next_s = progress, now, self._limit_s
            return None
        still = now - self._since
        if still < self._next_s:
            return None
        self._next_s = max(2 * self._next_s, still)
        return f"no progress for {still / 60:.0f} minutes: {self._place(waiting)}"

    @staticmethod
    def _place(waiting: Sequence[Waiting]) -> str:
        if not waiting:
            return "between phases"
        longest = sorted(waiting, key=lambda w: -w.seconds)
        return "; ".join(f"waiting in phase `{w.phase}` on {WAITS_FOR.get(w.phase, 'the controller')}" for w in longest)


class Watchdog(Periodic):
    """The thread that looks. A context manager."""

    def __init__(self, timer: PhaseTimer, minutes: float, report: Callable[[str | None], None]) -> None:
        """
        Args:
            timer: of the run.
            minutes: without progress until the first report; 0 never looks.
            report: told each report, and None when things move again. Called from the thread.
        """
        limit_s = 60 * minutes
        super().__init__("watchdog", min(10.0, limit_s / 10))
        self._timer, self._report = timer, report
        self._main = threading.get_ident()
        self._detector = StallDetector(limit_s, time.monotonic())
        self._reported: object = None

    def look(self) -> None:
        progress = self._timer.progress
        waiting = [Waiting(phase.name, phase.elapsed) for phase in self._timer.open_phases()]
        report = self._detector.look(progress, waiting, time.monotonic())
        if report is not None:
            self._report(f"{report}; the controller is in {where(self._main)}")
            self._reported = progress
        elif self._reported is not None and progress != self._reported:
            self._reported = None
            self._report(None)


def where(thread: int) -> str:
    """The innermost line of this project that a thread executes, as `function (file:line)`."""
    frame = sys._current_frames().get(thread)
    found = "an unknown place"
    for entry in traceback.extract_stack(frame) if frame is not None else ():
        if Path(entry.filename).is_relative_to(_ROOT) and ".venv" not in entry.filename:
            found = f"{entry.name} ({Path(entry.filename).relative_to(_ROOT)}:{entry.lineno})"
    return found
