"""The clock of a step: what each phase took, and which phase an error or a time-out happened in."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from speech.errors import PhaseTimeoutError
from speech.runtime.spans import SpanRecorder


class Phase:
    """A phase in progress."""

    def __init__(self, name: str, timeout_s: float | None, clock: Callable[[], float]) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self._clock = clock
        self._start = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the phase began."""
        return self._clock() - self._start

    def remaining(self) -> float | None:
        """Seconds left of the budget, to be passed on as the time-out of each blocking call; None = no limit.

        Raises:
            PhaseTimeoutError: nothing is left.
        """
        if self.timeout_s is None:
            return None
        left = self.timeout_s - self.elapsed
        if left <= 0:
            raise PhaseTimeoutError(self.name, self.timeout_s)
        return left


class PhaseTimer:
    """Times the phases of each step.

    Phases may nest or overlap, in one thread or several; each is charged its own time, to the step in which it ends,
    and the idle fraction counts overlapping work once.
    """

    def __init__(
        self, on_phase: Callable[[str], None] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`on_phase` is told the name of each phase as it begins, for a display."""
        self._on_phase = on_phase
        self._clock = clock
        self.spans = SpanRecorder()
        self.step_started = time.time()
        """Of the step, in seconds since the epoch."""
        self._lock = threading.Lock()
        self._step: int | None = None
        self._step_seconds: defaultdict[str, float] = defaultdict(float)
        self._working = 0
        self._work_began = 0.0
        self._work = 0.0
        self._step_began = clock()
        self._open: list[Phase] = []
        self._begun = 0

    @property
    def progress(self) -> tuple[int | None, int]:
        """Differs from what it was whenever a step or a phase has begun since."""
        return self._step, self._begun

    def open_phases(self) -> list[Phase]:
        """Phases in progress, the outer before the inner. May be called from another thread."""
        return list(self._open)

    def start_step(self, step: int) -> None:
        """Set the step's clock to zero. What lies between steps, an evaluation for instance, counts in no step."""
        with self._lock:
            self._step = step
            self._step_seconds.clear()
            self._work = 0.0
            self._step_began = self._work_began = self._clock()
            self.step_started = time.time()

    @contextmanager
    def phase(self, name: str, timeout_s: float | None = None, waiting: bool = False) -> Iterator[Phase]:
        """Time a phase.

        Python cannot interrupt a blocking call from outside, so a budget works through `Phase.remaining()`, which
        goes into each call (`ray.get(…, timeout=phase.remaining())`); the `TimeoutError` that this raises comes out
        as `PhaseTimeoutError`.

        Args:
            name: what the metric `time/<name>` is called.
            timeout_s: budget in seconds.
            waiting: the phase only waits for something, so its time counts as idle.

        Raises:
            PhaseTimeoutError: in place of any `TimeoutError` from inside. Other errors get a note with phase and step.
        """
        if self._on_phase is not None:
            self._on_phase(name)
        phase = Phase(name, timeout_s, self._clock)
        self._begun += 1
        self._open.append(phase)
        if not waiting:
            self._begin_work()
        try:
            with self.spans.span(name):
                yield phase
        except PhaseTimeoutError as error:
            error.add_note(self._place(name))
            raise
        except TimeoutError as error:
            timeout = PhaseTimeoutError(name, phase.elapsed if timeout_s is None else timeout_s)
            timeout.add_note(self._place(name))
            raise timeout from error
        except BaseException as error:
            error.add_note(self._place(name))
            raise
        finally:
            self._open.remove(phase)
            if not waiting:
                self._end_work()
            with self._lock:
                self._step_seconds[name] += phase.elapsed

    def finish_step(self) -> dict[str, float]:
        """The step's metrics: `time/<phase>` and `time/step` in seconds, and `time/idle_fraction`, the share of the
        step in which no phase was at work."""
        with self._lock:
            now = self._clock()
            wall = now - self._step_began
            work = self._work + (now - self._work_began if self._working else 0.0)
            metrics = {f"time/{name}": seconds for name, seconds in self._step_seconds.items()}
        metrics["time/step"] = wall
        metrics["time/idle_fraction"] = _idle(work, wall)
        return metrics

    def _begin_work(self) -> None:
        with self._lock:
            if self._working == 0:
                self._work_began = self._clock()
            self._working += 1

    def _end_work(self) -> None:
        with self._lock:
            self._working -= 1
            if self._working == 0:
                self._work += self._clock() - self._work_began

    def _place(self, name: str) -> str:
        return f"in phase `{name}`" + ("" if self._step is None else f" of step {self._step}")


def _idle(work: float, wall: float) -> float:
    return min(1.0, max(0.0, 1.0 - work / wall)) if wall > 0 else 0.0
