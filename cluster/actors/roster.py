"""The actors of a pool: which must start, which must go, and in which place each one is. Pure: it never waits and knows
no Ray."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Actors that may fail in a row, at their start or on the same work, before a pool gives up. One may die with its node
and the next be unlucky; after three it is the work, or the installation, that kills them."""


class StartError(RuntimeError):
    """No actor of a pool starts."""


@dataclass(slots=True, eq=False, kw_only=True)
class PoolActor:
    """One actor of a pool.

    Attributes:
        place: lowest number that was free when it was started.
        actor: its handle.
        ready: reference to the hex id of its node, there once its models are loaded.
        deadline: for its start, on the monotonic clock.
        node: hex id of its node, known once it has started.
        leaving: it finishes its calls and gets no more.
        calls: under way.
        setup, prepared: what it was last brought up to date by, and the reference to its answer.
    """

    place: int
    actor: Any
    ready: Any
    deadline: float
    node: str | None = None
    leaving: bool = False
    calls: list[Any] = field(default_factory=list)
    setup: Any = None
    prepared: Any = None

    @property
    def serves(self) -> bool:
        """Whether it has started and stays."""
        return self.node is not None and not self.leaving


class Roster:
    """Brings the actors of a pool to the number that is wanted, and away from nodes that go.

    Not safe for threads, but for what is read of it.

    Attributes:
        wanted: how many there should be. May be set at any moment; `adjust` sees to it.
        replaced: actors that were replaced so far, those included that left a node before it went.
    """

    def __init__(
        self, what: str, wanted: int, start: Callable[[int], PoolActor], kill: Callable[[PoolActor], None]
    ) -> None:
        """
        Args:
            what: the actors do, for messages.
            start: a new actor in a place.
            kill: ends an actor.
        """
        self.wanted = wanted
        self.replaced = 0
        self._what, self._start, self._kill = what, start, kill
        self._actors: list[PoolActor] = []
        self._failed_starts = 0

    def __iter__(self) -> Iterator[PoolActor]:
        """Those that leave included. The list may change meanwhile."""
        return iter(list(self._actors))

    def serving(self) -> list[PoolActor]:
        """Those that have started and stay."""
        return [actor for actor in self if actor.serves]

    def staying(self) -> list[PoolActor]:
        """Those that do not leave, started or not."""
        return [actor for actor in self if not actor.leaving]

    def adjust(self) -> None:
        """Start actors that are missing, choose those that must go, and end those of them that have no calls."""
        wanted, staying = self.wanted, self.staying()
        for actor in sorted(staying, key=lambda a: (a.node is None, a.place))[wanted:]:
            actor.leaving = True
        for actor in self:
            if actor.leaving and not actor.calls:
                self.end(actor)
        for _ in range(wanted - len(staying)):
            self._actors.append(self._start(free_place(actor.place for actor in self)))

    def leave_nodes(self, going: Collection[str]) -> None:
        """Replace the actors on nodes that are announced to go. They finish their calls, so that nothing is lost."""
        for actor in self.staying():
            if actor.node in going:
                logger.warning("%s: actor %d is replaced: its node is about to go", self._what, actor.place)
                actor.leaving = True
                self.replaced += 1

    def started(self, actor: PoolActor, node: str) -> None:
        """It has loaded its models, on this node."""
        actor.node = node
        self._failed_starts = 0

    def not_started(self, actor: PoolActor, reason: str) -> None:
        """End an actor that does not start. Where others serve they go on without it, until more are wanted; otherwise
        `adjust` starts another.

        Raises:
            StartError: `ATTEMPTS` starts in a row have failed, and no other actor serves.
        """
        self.end(actor)
        if self.serving():
            self.wanted = len(self.staying())
            logger.warning("%s: actor %d does not start, %d go on: %s", self._what, actor.place, self.wanted, reason)
            return
        self.replaced += 1
        self._failed_starts += 1
        if self._failed_starts == ATTEMPTS:
            self._failed_starts = 0
            raise StartError(f"{self._what}: no actor starts, {ATTEMPTS} attempts failed: {reason}")
        logger.warning("%s: actor %d does not start, another is started: %s", self._what, actor.place, reason)

    def lost(self, actor: PoolActor, reason: str) -> None:
        """End an actor that is dead or does not answer; `adjust` starts another in its place."""
        if actor not in self._actors:  # another thread has noticed too
            return
        logger.warning("%s: actor %d is lost, another is started: %s", self._what, actor.place, reason)
        self.end(actor)
        self.replaced += not actor.leaving

    def end(self, actor: PoolActor) -> None:
        """Kill an actor, whatever it does."""
        self._actors.remove(actor)
        self._kill(actor)


def free_place(taken: Iterable[int]) -> int:
    """The lowest number that is not taken."""
    places = set(taken)
    return next(place for place in itertools.count() if place not in places)
