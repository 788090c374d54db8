"""Looking after the engines: what was answered, who is dead, what each is to be asked next."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.engine_member import Call, Member, Publication
from cluster.generation import FleetError, Generation
from cluster.health import State
from cluster.prompt_pools import ModelRef
from cluster.remote import draining_nodes
from cluster.work import WorkBook
from rollout.config import EngineConfig
from rollout.errors import EngineLostError, PhaseTimeoutError, PublicationError, StaleEngineError
from rollout.stats import EngineStats
from speech.errors import UserError, last_line
from speech.roster import free_place

logger = logging.getLogger(__name__)

ENGINE_FAULTS = (EngineLostError, PhaseTimeoutError, StaleEngineError)
"""What `generate` raises when another engine would have managed. Any other error is the work's own."""
REFUSALS = 2
"""So many engines that cannot verify a publication, and none that can: then the weights are at fault."""


class Supervisor:
    """One `tick` after another brings the engines to where they should be. Never waits; not safe for threads.

    Attributes:
        members: the engines, those that leave included.
        wanted: how many there should be.
        publication: the weights that all must hold.
        generations: the order that each unfinished piece of work belongs to.
        fatal: why the run cannot go on.
        restarts: engines that were replaced.
        away: None while the GPUs are the engines'; otherwise all must leave, keep or discard their weights, and none is
            started.
    """

    def __init__(
        self,
        model: ModelRef,
        config: EngineConfig,
        options: Callable[[int], dict[str, Any]] = lambda place: {},
        sleeps: bool = False,
    ) -> None:
        """`options` and `sleeps`: see `EngineFleet`."""
        self._model, self._config, self._options, self._sleeps = model, config, options, sleeps
        self.away: Literal["kept", "discarded"] | None = None
        self.own_version: int | None = None
        self.members: list[Member] = []
        self.wanted = config.count
        self.publication: Publication | None = None
        self.work = WorkBook()
        self.generations: dict[int, Generation] = {}
        self.fatal: BaseException | None = None
        self.restarts = 0
        self._gone = EngineStats()
        self._draining: set[str] = set()
        self._nodes_asked: float | None = None

    def tick(self, now: float) -> None:
        """Collect what was answered, draw the consequences, and ask for what is needed next."""
        self._collect(now)
        self._judge(now)
        self._replace(now)
        self._resize(now)
        self._ask(now)

    def settle(self, generation: Generation, error: BaseException) -> None:
        """Let a generation fail, and stop the engines that have pieces of it."""
        generation.error = error
        numbers = {number for number, of in self.generations.items() if of is generation}
        self.work.forget(numbers)
        for number in numbers:
            del self.generations[number]
        for member in self.members:
            for call in member.owes("generating"):
                if call.subject.number in numbers:
                    member.cancel(call)

    def stats(self) -> EngineStats:
        """Totals over all engines since the start, as far as they were told."""
        return _sum([self._gone, *(m.stats for m in self.members)])

    # -- answers -------------------------------------------------------------------------------------------------

    def _collect(self, now: float) -> None:
        owed = {call.ref: (member, call) for member in self.members for call in member.calls}
        if not owed:
            return
        for ref in ray.wait(list(owed), num_returns=len(owed), timeout=0)[0]:
            member, call = owed[ref]
            if call not in member.calls:  # it failed a moment ago, by another of its calls
                continue
            member.calls.remove(call)
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                self._raised(member, call, error.cause or error)
            except RayError as error:
                if isinstance(error, RayActorError) and error.actor_init_failed:
                    self.fatal = self.fatal or error  # a constructor raises again wherever it is called
                self._fail(member, f"lost while {call.kind}: {last_line(error)}")
            else:
                self._answered(member, call, answer, now)

    def _answered(self, member: Member, call: Call, answer: Any, now: float) -> None:
        health = member.health
        if call.kind == "starting":
            logger.info("%s: started in %.1f s", member, now - member.spawned)
            member.node = answer
            health.started()
            if self.own_version is not None:
                health.expect(0)
                health.verified(0)
        elif call.kind == "publishing":
            call.subject.gaps.append(answer)
            member.asleep = False  # an update brings an engine back
            health.verified(call.subject.number)
        elif call.kind in ("sleeping", "waking"):
            member.asleep = call.kind == "sleeping"
        elif call.kind == "heartbeat":
            health.answered()
        elif call.kind == "shutdown":
            member.end()
            health.retire()
        elif self.work.finish(call.subject, member.incarnation):
            health.worked()
            self.generations.pop(call.subject.number).receive(call.subject, answer)

    def _raised(self, member: Member, call: Call, error: BaseException) -> None:
        if call.kind == "starting" and isinstance(error, UserError):
            self.fatal = self.fatal or error
        if call.kind == "publishing" and isinstance(error, PublicationError):
            call.subject.refusals += 1
            if call.subject.refusals >= REFUSALS and not call.subject.gaps:
                self.fatal = self.fatal or error
        if call.kind == "generating" and not isinstance(error, ENGINE_FAULTS):
            generation = self.generations.get(call.subject.number)
            if generation is not None:
                self.settle(generation, error)
            return
        self._fail(member, f"{call.kind} failed: {last_line(error)}")

    # -- health --------------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> None:
        if self._nodes_asked is None or now - self._nodes_asked >= self._config.heartbeat_s:
            self._nodes_asked, self._draining = now, draining_nodes()
        for member in self.members:
            call = member.overdue(now)
            if call is not None:
                self._fail(member, f"{call.kind} took longer than {call.budget:.0f} s")
            elif member.living:
                member.health.check(now)
                if member.health.state is State.DEAD:
                    self._fail(member, member.health.reason or "")
            if member.node in self._draining and not member.leaving:
                logger.warning("%s: its node is about to go; it finishes what it has", member)
                self._leave(member)

    def _fail(self, member: Member, reason: str) -> None:
        """Give an engine up; what it had goes to another, or after too many engines to nobody."""
        member.fail(reason)
        for piece in self.work.lose(member.incarnation):
            generation = self.generations.get(piece.number)
            if generation is not None and piece.attempts >= self._config.max_failures:
                prompts = generation.arguments[piece.number][0]
                names = ", ".join(prompt.id for prompt in prompts[:3]) + (", …" if len(prompts) > 3 else "")
                message = f"{piece.attempts} engines were lost on prompts {names}; the last, {member}: {reason}"
                self.settle(generation, FleetError(message))

    def _leave(self, member: Member) -> None:
        member.leaving = True
        if member.health.state is not State.DEAD:
            member.health.drain()

    def _replace(self, now: float) -> None:
        """Restart the dead, and let go of those that leave once they have nothing left to do."""
        for member in self.members:
            if member.health.state is State.DEAD and not member.leaving and not self.away and self.fatal is None:
                self._revive(member, now)
            if not member.leaving or member.health.state is State.RETIRED:
                continue
            if member.health.state is State.DEAD or member.owes("starting"):
                member.end()
                member.health.retire()
            elif not member.owes("generating") and not member.owes("shutdown"):
                member.shutdown(now)
        for member in [m for m in self.members if m.health.state is State.RETIRED]:
            self.members.remove(member)
            self._forget_stats(member)

    def _revive(self, member: Member, now: float) -> None:
        health = member.health
        if not health.exhausted:
            self.restarts += 1
            self._forget_stats(member)
            health.restart()
            member.spawn(now)
            return
        others = [m for m in self.members if m is not member and not m.leaving]
        reason = f"{member} failed {health.failures} times in a row, the last time: {health.reason}"
        if len(others) >= self._config.fewest and any(m.health.serves for m in others):
            logger.warning("%s; the fleet goes on without it", reason)
            self.wanted = len(others)
            self._leave(member)
        else:
            self.fatal = FleetError(reason)

    def _forget_stats(self, member: Member) -> None:
        self._gone = _sum([self._gone, member.stats])
        member.stats = EngineStats()

    # -- what to ask for -----------------------------------------------------------------------------------------

    def _resize(self, now: float) -> None:
        staying = [m for m in self.members if not m.leaving]
        for _ in range(0 if self.away else self.wanted - len(staying)):
            place = free_place(m.place for m in self.members)
            member = Member(place, self._model, self._config, self.own_version, self._options, self._sleeps)
            if self.publication is not None:
                member.health.expect(self.publication.number)
            member.spawn(now)
            self.members.append(member)
        for member in staying[self.wanted :]:
            self._leave(member)

    def _ask(self, now: float) -> None:
        for member in self.members:
            self._take_turns(member, now)
            member.heartbeat(now)
        if not self.away:
            self._give_out(now)

    def _take_turns(self, member: Member, now: float) -> None:
        """What the engine must do before it can serve: leave, come back, or take the current weights."""
        current = self.publication
        if not member.living or any(member.owes(kind) for kind in ("sleeping", "waking", "shutdown")):
            return
        if self.away:
            if not member.asleep and not member.owes("publishing"):
                member.sleep(self.away == "kept", now)
        elif member.health.state is State.STALE and current is not None:
            if not any(call.subject is current for call in member.owes("publishing")):
                member.publish(current, now)
        elif member.asleep:
            member.wake(now)

    def _give_out(self, now: float) -> None:
        """Each waiting piece to the engine with least work. Engines that are being updated count, and their pieces wait
        for them: otherwise the first that is updated would get everything."""
        awaited: dict[Member, int] = {
            m: self.work.load(m.incarnation)
            for m in self.members
            if m.health.serves or (m.health.state is State.STALE and m.owes("publishing"))
        }
        if not any(m.health.serves for m in awaited):
            return
        for piece in self.work.waiting():
            member = min(awaited, key=lambda m: awaited[m])
            awaited[member] += piece.size
            if member.health.serves and not member.asleep:
                self.work.assign(piece, member.incarnation)
                member.generate(piece, self.generations[piece.number].arguments[piece.number], now)


def _sum(parts: Sequence[EngineStats]) -> EngineStats:
    names = [field.name for field in dataclasses.fields(EngineStats)]
    return EngineStats(**{name: sum(getattr(part, name) for part in parts) for name in names})
