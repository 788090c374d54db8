"""How many engines there should be: a pure policy, told once per step how the last one was spent."""

from __future__ import annotations

import math
from dataclasses import dataclass

GROW_LIMIT = 2.0
"""Largest factor of one growth: a wrong measurement must not start a thousand engines."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One step of the fleet.

    Attributes:
        engines: that served.
        waiting: share of the time in which the learner had nothing to do but wait for rollouts, 0 to 1.
        busy: share of the engines' time in which they had work, 0 to 1.
    """

    engines: int
    waiting: float
    busy: float


class ScalingPolicy:
    """Seeks the size at which rollouts take as long as learning.

    Where W is a step's rollout work in engine-seconds and L the learner's own time, that size is W / L. Both come out
    of what is observed, whether rollouts overlap with learning or not: W is n · busy per second, and L is what is left
    of a second when the waiting is taken away. So the wanted size is n · busy / (1 − waiting). More engines would
    mostly idle; with fewer, the learner would wait for longer than it learns.

    Hysteresis: the wanted size must lie beyond `margin` on the same side for `patience` steps in a row, and it is the
    one nearest to the present size that counts. After a change the policy starts counting anew.
    """

    def __init__(self, minimum: int, maximum: int, margin: float = 0.25, patience: int = 3) -> None:
        """Raises ValueError for bounds that are no bounds."""
        if not 1 <= minimum <= maximum or margin < 0 or patience < 1:
            raise ValueError("need 1 ≤ minimum ≤ maximum, a margin of at least 0 and a patience of at least 1")
        self.minimum, self.maximum = minimum, maximum
        self._margin, self._patience = margin, patience
        self._wanted: list[float] = []

    def observe(self, step: Observation) -> int:
        """The size that the fleet should have now."""
        size = step.engines
        waiting, busy = min(max(step.waiting, 0.0), 1.0), min(max(step.busy, 0.0), 1.0)
        wanted = min(size * busy / max(1.0 - waiting, 1e-6), size * GROW_LIMIT)
        direction = self._direction(size, wanted)
        if direction == 0 or (self._wanted and self._direction(size, self._wanted[-1]) != direction):
            self._wanted.clear()
        if direction != 0:
            self._wanted.append(wanted)
        if len(self._wanted) < self._patience:
            return self._bounded(size)
        nearest = min(self._wanted) if direction > 0 else max(self._wanted)
        self._wanted.clear()
        return self._bounded(math.ceil(nearest))

    def forget(self) -> None:
        """The fleet changed: what was seen before says nothing about it as it is now."""
        self._wanted.clear()

    def _direction(self, size: int, wanted: float) -> int:
        if wanted > size * (1 + self._margin):
            return 1
        # Rounded up, so that it is not the learner that pays for a shrinkage.
        return -1 if wanted < size * (1 - self._margin) and math.ceil(wanted) < size else 0

    def _bounded(self, size: int) -> int:
        return min(max(size, self.minimum), self.maximum)


class FleetClock:
    """Measures an `Observation`: how the time since the last one was spent."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._engines = 0
        self._wall = self._waited = self._served = self._busy = 0.0

    def advance(self, now: float, engines: int, busy: int, waiting: bool) -> None:
        """Charge the time since the last call to what goes on now.

        Args:
            now: seconds, on a clock that only goes forward.
            engines: that are not leaving.
            busy: of them, those that have work.
            waiting: somebody waits for groups.
        """
        if self._last is not None:
            passed = now - self._last
            self._wall += passed
            self._waited += passed if waiting else 0.0
            self._served += passed * engines
            self._busy += passed * busy
        self._last, self._engines = now, engines

    def take(self) -> Observation | None:
        """The time so far, which then starts anew; None when nobody had work in it."""
        seen = None
        if self._busy > 0:
            seen = Observation(self._engines, self._waited / self._wall, min(self._busy / self._served, 1.0))
        self._wall = self._waited = self._served = self._busy = 0.0
        return seen
