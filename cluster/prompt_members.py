"""The actors that a pool of encoders has: who loads, who serves, who must go."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.remote import draining_nodes, get
from speech.errors import last_line

logger = logging.getLogger(__name__)

START_S = 600.0
"""An actor that has not loaded its models by then is done without, where there are others."""
COUNT_TIMEOUT_S = 10.0
"""For the last count of an actor that has nothing to do."""


@dataclass(slots=True, eq=False)
class Member:
    """One actor of a pool.

    Attributes:
        place: lowest number that was free when it was started; what its options derive from.
        ready: reference to the hex id of its node, there once its models are loaded.
        deadline: for that, on the monotonic clock.
        node: that id, once known.
        leaving: it finishes what it has and gets nothing more.
        calls: what it was asked to encode, as far as not known to be finished.
        states, updating: the trained weights that it was sent last, and its answer to that.
        total: recordings that went through its model, as far as known.
    """

    place: int
    actor: Any
    ready: ray.ObjectRef
    deadline: float
    node: str | None = None
    leaving: bool = False
    calls: list[ray.ObjectRef] = field(default_factory=list)
    states: ray.ObjectRef | None = None
    updating: ray.ObjectRef | None = None
    total: int = 0

    @property
    def serves(self) -> bool:
        """Whether it has loaded its models and stays."""
        return self.node is not None and not self.leaving

    def unfinished(self) -> list[ray.ObjectRef]:
        """What of `calls` is still under way."""
        if self.calls:
            self.calls = ray.wait(self.calls, num_returns=len(self.calls), timeout=0)[1]
        return self.calls


class Members:
    """Brings the actors to the number that is wanted, and away from nodes that go. Never waits for an actor's work; not
    safe for threads.

    Attributes:
        wanted: how many there should be; `adjust` sees to it.
        replaced: actors that were replaced so far, those included that left a node before it went.
        lost_total: recordings that went through the models of actors that are no more, as far as known.
    """

    def __init__(self, what: str, wanted: int, spawn: Callable[[int], Any]) -> None:
        """
        Args:
            what: the actors do, for messages.
            spawn: starts an actor in a place.
        """
        self._what, self._spawn = what, spawn
        self.wanted = wanted
        self.replaced = 0
        self.lost_total = 0
        self._members: list[Member] = []

    def __iter__(self) -> Iterator[Member]:
        """Those that leave included. The list may change meanwhile."""
        return iter(list(self._members))

    def able(self) -> list[Member]:
        """Those to give work to: who still loads only where nobody has."""
        return [m for m in self if m.serves] or [m for m in self if not m.leaving]

    def adjust(self) -> None:
        """Start actors that are missing, choose those that must go, and end those of them that have nothing to do."""
        for member in self:
            if member.node is None:
                self._look_at_start(member)
        staying = [member for member in self if not member.leaving]
        for member in sorted(staying, key=lambda m: (m.node is None, m.place))[self.wanted :]:
            member.leaving = True
        for member in self:
            if member.leaving and not member.unfinished():
                self._end(member)
        for _ in range(self.wanted - len(staying)):
            taken = {member.place for member in self}
            place = next(place for place in itertools.count() if place not in taken)
            actor = self._spawn(place)
            self._members.append(Member(place, actor, actor.ready.remote(), time.monotonic() + START_S))

    def leave_nodes_that_go(self) -> None:
        """Between two calls nothing is lost with an actor, so one whose node is announced to go is replaced now."""
        going = draining_nodes()
        for member in self:
            if member.node in going and not member.leaving:
                logger.warning("%s: replacing an actor: its node is about to go", self._what)
                member.leaving = True
                self.replaced += 1

    def give_up(self, member: Member, reason: str) -> None:
        """End an actor that is dead or does not answer; `adjust` starts another in its place."""
        if member in self._members:  # otherwise another thread has noticed too
            logger.warning("%s: replacing an actor: %s", self._what, reason)
            self._remove(member)
            self.replaced += not member.leaving

    def _look_at_start(self, member: Member) -> None:
        """Note that it has loaded; go on without it where it does not, and others serve, until more are wanted."""
        try:
            if ray.wait([member.ready], timeout=0)[0]:
                member.node = ray.get(member.ready)
                return
            if time.monotonic() < member.deadline:
                return
            reason = f"no sign of life in {START_S:.0f} s"
        except ray.exceptions.RayError as error:
            reason = last_line(error)
        if any(m.serves for m in self):  # where none does, whoever waits for its work says what is wrong
            self._remove(member)
            self.wanted = sum(not m.leaving for m in self)
            logger.warning("%s: an actor does not start, %d go on: %s", self._what, self.wanted, reason)

    def _end(self, member: Member) -> None:
        if member.node is not None:
            try:
                (member.total,) = get([member.actor.encoded_total.remote()], f"{self._what}: count", COUNT_TIMEOUT_S)
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                logger.warning("%s: what an actor encoded last is not counted: %s", self._what, last_line(error))
        self._remove(member)

    def _remove(self, member: Member) -> None:
        ray.kill(member.actor)
        self._members.remove(member)
        self.lost_total += member.total
