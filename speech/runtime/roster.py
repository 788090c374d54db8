"""Who belongs to a pool of actors: who must come, who must go, and in which place each one is."""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class PoolActor:
    """One actor of a pool.

    Attributes:
        place: lowest number that was free when it was started.
        actor: its handle.
        deadline: for what it owes first, on the monotonic clock.
        node: hex id of its node, known once it has started.
        leaving: it finishes what it has and gets nothing more.
    """

    place: int
    actor: Any
    deadline: float
    node: str | None = None
    leaving: bool = False

    @property
    def serves(self) -> bool:
        """Whether it has started and stays."""
        return self.node is not None and not self.leaving


_PoolActor = TypeVar("_PoolActor", bound=PoolActor)


class Roster(ABC, Generic[_PoolActor]):
    """Brings the actors of a pool to the number that is wanted, and away from nodes that go. Never waits for an actor's
    work; not safe for threads, but for what is read of it.

    Attributes:
        wanted: how many there should be. May be set at any moment; `adjust` sees to it.
        replaced: actors that were replaced so far, those included that left a node before it went.
    """

    def __init__(self, what: str, wanted: int) -> None:
        """`what`: the actors do, for messages."""
        self.what = what
        self.wanted = wanted
        self.replaced = 0
        self._members: list[_PoolActor] = []

    @abstractmethod
    def _start(self, place: int) -> _PoolActor:
        """A new actor."""

    @abstractmethod
    def _is_busy(self, member: _PoolActor) -> bool:
        """Whether it must not be ended yet."""

    @abstractmethod
    def end(self, member: _PoolActor) -> None:
        """Kill the actor, and strike it off."""

    def __iter__(self) -> Iterator[_PoolActor]:
        """Those that leave included. The list may change meanwhile."""
        return iter(list(self._members))

    def adjust(self) -> None:
        """Start actors that are missing, choose those that must go, and end those of them that have nothing to do."""
        wanted = self.wanted
        staying = [member for member in self if not member.leaving]
        for member in sorted(staying, key=lambda m: (m.node is None, m.place))[wanted:]:
            member.leaving = True
        for member in self:
            if member.leaving and not self._is_busy(member):
                self.end(member)
        for _ in range(wanted - len(staying)):
            self._members.append(self._start(free_place(member.place for member in self)))

    def leave_nodes(self, going: Collection[str]) -> None:
        """Nothing is lost with an actor between two calls, so it is then that one whose node is announced to go is
        replaced."""
        for member in self:
            if member.node in going and not member.leaving:
                logger.warning("%s: actor %d is replaced: its node is about to go", self.what, member.place)
                member.leaving = True
                self.replaced += 1

    def do_without(self, member: _PoolActor, reason: str) -> bool:
        """End an actor that does not start where others serve, until more are wanted; whether they do."""
        others = any(other.serves for other in self if other is not member)
        if others:
            self.end(member)
            self.wanted = sum(not other.leaving for other in self)
            logger.warning("%s: actor %d does not start, %d go on: %s", self.what, member.place, self.wanted, reason)
        return others


def free_place(taken: Iterable[int]) -> int:
    """The lowest number that is not taken."""
    places = set(taken)
    return next(place for place in itertools.count() if place not in places)
