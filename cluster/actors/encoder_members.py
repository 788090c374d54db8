"""The actors that a pool of encoders has: who loads, who serves, who must go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.actors.remote import get
from speech.errors import last_line
from speech.runtime.roster import PoolActor, Roster

logger = logging.getLogger(__name__)

START_S = 600.0
"""An actor that has not loaded its models by then is done without, where there are others."""
COUNT_TIMEOUT_S = 10.0
"""For the last count of an actor that has nothing to do."""


@dataclass(slots=True, eq=False, kw_only=True)
class EncoderWorker(PoolActor):
    """One actor of a pool.

    Attributes:
        ready: reference to the hex id of its node, there once its models are loaded.
        calls: what it was asked to encode, as far as not known to be finished.
        states, updating: the trained weights that it was sent last, and its answer to that.
        total: recordings that went through its model, as far as known.
    """

    ready: ray.ObjectRef
    calls: list[ray.ObjectRef] = field(default_factory=list)
    states: ray.ObjectRef | None = None
    updating: ray.ObjectRef | None = None
    total: int = 0

    def unfinished(self) -> list[ray.ObjectRef]:
        """What of `calls` is still under way."""
        if self.calls:
            self.calls = ray.wait(self.calls, num_returns=len(self.calls), timeout=0)[1]
        return self.calls


class EncoderRoster(Roster[EncoderWorker]):
    """The roster of a `EncoderPool`.

    Attributes:
        lost_total: recordings that went through the models of actors that are no more, as far as known.
    """

    def __init__(self, what: str, wanted: int, spawn: Callable[[int], Any]) -> None:
        """
        Args:
            what: the actors do, for messages.
            spawn: starts an actor in a place.
        """
        super().__init__(what, wanted)
        self._spawn = spawn
        self.lost_total = 0

    def candidates(self) -> list[EncoderWorker]:
        """Those to give work to: who still loads only where nobody has."""
        return [m for m in self if m.serves] or [m for m in self if not m.leaving]

    def adjust(self) -> None:
        for member in self:
            if member.node is None:
                self._look_at_start(member)
        super().adjust()

    def end(self, member: EncoderWorker) -> None:
        """Kill the actor, when it has said how much it has done."""
        if member.node is not None:
            try:
                (member.total,) = get([member.actor.encoded_total.remote()], f"{self.what}: count", COUNT_TIMEOUT_S)
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                logger.warning("%s: what an actor encoded last is not counted: %s", self.what, last_line(error))
        self._remove(member)

    def give_up(self, member: EncoderWorker, reason: str) -> None:
        """End an actor that is dead or does not answer; `adjust` starts another in its place."""
        if member in self._members:  # otherwise another thread has noticed too
            logger.warning("%s: replacing an actor: %s", self.what, reason)
            self._remove(member)
            self.replaced += not member.leaving

    def _look_at_start(self, member: EncoderWorker) -> None:
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
        self.do_without(member, reason)  # where no other serves, whoever waits for its work says what is wrong

    def _start(self, place: int) -> EncoderWorker:
        actor = self._spawn(place)
        return EncoderWorker(place=place, actor=actor, deadline=time.monotonic() + START_S, ready=actor.ready.remote())

    def _is_busy(self, member: EncoderWorker) -> bool:
        return bool(member.unfinished())

    def _remove(self, member: EncoderWorker) -> None:
        ray.kill(member.actor)
        self._members.remove(member)
        self.lost_total += member.total
