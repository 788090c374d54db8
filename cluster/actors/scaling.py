"""How many engines, reward actors and encoders there should be: a pure policy, told once per step how the last one was
spent."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from speech.runtime.spans import Span, covered

logger = logging.getLogger(__name__)

GROW_LIMIT = 2.0
"""Largest factor of one growth: a wrong measurement must not start a thousand engines."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One step of the fleet, or of a pool.

    Attributes:
        actors: that served.
        waiting: share of the time in which the learner had nothing to do but wait for them, 0 to 1.
        busy: share of the actors' time in which they had work, 0 to 1.
    """

    actors: int
    waiting: float
    busy: float


class ScalingPolicy:
    """Seeks the size at which rollouts take as long as learning, or a pool's work as long as all else in a step.

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
        size = step.actors
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


AWAITED = ("reward", "generate", "encode")
"""The phases of a batch on its way to the learner, the last of them first."""


def waiting_shares(controller: Sequence[Span], start: float, end: float) -> dict[str, float]:
    """The share of [start, end] in which the learner waited for each phase of `AWAITED`.

    The learner waits while no phase of its own goes on. Of the phases that go on beside it, the one nearest to the
    learner is what it waits for: the others are at later batches.

    Args:
        controller: spans of the controller's phases.
        start, end: seconds since the epoch.
    """
    if end <= start:
        return dict.fromkeys(AWAITED, 0.0)
    counted = [span for span in controller if span.name not in (*AWAITED, "wait")]
    before = covered(counted, start, end)
    shares = {}
    for name in AWAITED:
        counted += [span for span in controller if span.name == name]
        after = covered(counted, start, end)
        shares[name] = (after - before) / (end - start)
        before = after
    return shares


class Pool(Protocol):
    """A pool of actors that can be resized while it works."""

    @property
    def wanted(self) -> int:
        """How many there should be."""

    def serving(self) -> int:
        """How many can work, those with work included."""

    def resize(self, wanted: int) -> None:
        """Let actors come, or go once they have nothing left to do. Never waits for either."""


class PoolScaler:
    """Resizes a pool by a `ScalingPolicy`, once per step."""

    def __init__(self, pool: Pool, component: str, phase: str, minimum: int, maximum: int) -> None:
        """
        Args:
            component: what the pool's actors are called in spans (`rewards` of `rewards 0`).
            phase: of the controller, in which the pool works.
        """
        self._pool, self._component, self._phase = pool, component, phase
        self._policy = ScalingPolicy(minimum, maximum)

    def rescale(
        self, waiting: Mapping[str, float], actors: Mapping[str, Sequence[Span]], start: float, end: float
    ) -> None:
        """What does the step in [start, end] say about the pool's size?

        Args:
            waiting: from `waiting_shares`.
            actors: spans by actor, of this pool and of others.
        """
        pool, size = self._pool, self._pool.serving()
        if size != pool.wanted:  # some are on their way: it is not yet what it was resized to
            self._policy.forget()
            return
        its = [covered(list(spans), start, end) for name, spans in actors.items() if name.split()[0] == self._component]
        if not any(its):
            return
        seen = Observation(size, waiting[self._phase], sum(its) / (size * (end - start)))
        wanted = self._policy.observe(seen)
        if wanted != size:
            logger.info("%s: from %d to %d actors (%s)", self._component, size, wanted, seen)
            pool.resize(wanted)
