"""Looking after the engines: what was answered, who is dead, what each is to be asked next."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError, RpcError

from cluster.actors.leftovers import free_leftovers_on
from cluster.actors.model import ModelRef
from cluster.actors.roster import free_place
from cluster.fleet.assignments import Assignments, Shard
from cluster.fleet.health import State
from cluster.fleet.replica import Call, EngineReplica, Publication
from cluster.fleet.rollout_future import FleetError, RolloutFuture
from rollout.config import EngineConfig
from rollout.engine.stats import EngineStats
from rollout.errors import EngineLostError, PublicationError, StaleEngineError, WeightsLostError
from speech.errors import PhaseTimeoutError, UserError, last_line
from speech.records import BadUtterance, Group

logger = logging.getLogger(__name__)

ENGINE_FAULTS = (EngineLostError, PhaseTimeoutError, StaleEngineError)
"""What `generate` raises when another engine would have managed. Any other error is the work's own."""
SYSTEMIC = 3
"""So many prompts in a row that no engine can sample alone: then the prompts are not at fault."""
REFUSALS = 2
"""So many engines that cannot verify a publication, and none that can: then the weights are at fault."""


class Supervisor:
    """One `tick` after another brings the engines to where they should be. Never waits; not safe for threads.

    Any call of Ray may fail, and the tick with it. So what is believed changes only after the call has succeeded, and
    the next tick does what is left.

    Attributes:
        replicas: the engines, those that leave included.
        wanted: how many there should be.
        publication: the weights that all must hold.
        futures: the order that each unfinished shard of work belongs to.
        fatal: why the run cannot go on.
        restarts: engines that were replaced.
        told: the last totals of each incarnation, those that are gone included: a late answer counts as whose it is.
        draining: hex ids of the nodes that are announced to go.
        nodes: hex ids of those that have had engines.
        away: None while the GPUs are the engines'; otherwise all must leave, keep or discard their weights, and none is
            started.
    """

    def __init__(
        self,
        model: ModelRef,
        config: EngineConfig,
        options: Callable[[int], dict[str, Any]] = lambda slot: {},
        sleeps: bool = False,
    ) -> None:
        """`options` and `sleeps`: see `EngineFleet`."""
        self._model, self._config, self._options, self._sleeps = model, config, options, sleeps
        self.away: Literal["kept", "discarded"] | None = None
        self.own_version: int | None = None
        self.replicas: list[EngineReplica] = []
        self.wanted = config.count
        self.publication: Publication | None = None
        self.work = Assignments()
        self.futures: dict[int, RolloutFuture] = {}
        self.fatal: BaseException | None = None
        self.restarts = self._bad_in_a_row = 0
        self.told: dict[int, EngineStats] = {}
        self.draining: set[str] = set()
        self.nodes: set[str] = set()
        self._untidy: set[str] = set()

    def tick(self, now: float) -> None:
        """Collect what was answered, draw the consequences, and ask for what is needed next."""
        self._collect(now)
        self._judge(now)
        self._replace(now)
        self._resize(now)
        self._ask(now)
        self._tidy()

    def settle(self, future: RolloutFuture, error: BaseException) -> None:
        """Let a future fail, and stop the engines that have shards of it."""
        future.error = error
        numbers = {number for number, of in self.futures.items() if of is future}
        self.work.forget(numbers)
        for number in numbers:
            del self.futures[number]
        for replica in self.replicas:
            for call in replica.pending("generating"):
                if call.subject.number in numbers:
                    replica.cancel(call)

    @property
    def weights_lost(self) -> WeightsLostError | None:
        """Why no engine can serve until weights are published again, if that is so."""
        if self.publication is None or any(m.health.serves or m.pending("publishing") for m in self.replicas):
            return None
        return self.publication.lost

    def stats(self) -> EngineStats:
        """Totals over all engines since the start, as far as they were told."""
        return _sum(list(self.told.values()))

    # -- answers -------------------------------------------------------------------------------------------------

    def _collect(self, now: float) -> None:
        pending = {call.awaited: (replica, call) for replica in self.replicas for call in replica.calls}
        if not pending:
            return
        for ref in ray.wait(list(pending), num_returns=len(pending), timeout=0)[0]:
            replica, call = pending[ref]
            if call not in replica.calls:  # it failed a moment ago, by another of its calls
                continue
            error: RayError | None = None
            answer: Any = None
            ended = True
            try:
                answer, ended = self._answer(call)
            except RayError as raised:
                if isinstance(raised, RpcError) and not isinstance(raised, RayTaskError):
                    raise  # this process did not reach Ray; the answer is still where it was
                error = raised
            if not ended:
                self._sampled(replica, call.subject, *answer)
                continue
            replica.calls.remove(call)
            if isinstance(error, RayTaskError):
                self._raised(replica, call, error.cause or error, now)
            elif error is not None:
                if isinstance(error, RayActorError) and error.actor_init_failed:
                    self.fatal = self.fatal or error  # a constructor raises again wherever it is called
                self._fail(replica, f"lost while {call.kind}: {last_line(error)}", now)
            else:
                self._answered(replica, call, answer, now)

    def _answer(self, call: Call) -> tuple[Any, bool]:
        """What a call has answered, and whether that is all."""
        if call.kind != "generating":
            return ray.get(call.ref), True
        try:
            # Noted first: where Ray cannot be reached now, it is fetched later.
            call.item = call.item or next(call.ref)
        except StopIteration:
            return None, True
        answer, call.item = ray.get(call.item), None
        return answer, False

    def _sampled(self, replica: EngineReplica, shard: Shard, place: int, group: Group) -> None:
        """A group of a shard is there; it counts if the shard is still this engine's."""
        if self.work.has(shard, replica.incarnation):
            self.futures[shard.number].receive(shard, place, group)

    def _answered(self, replica: EngineReplica, call: Call, answer: Any, now: float) -> None:
        health = replica.health
        if call.kind == "starting":
            logger.info("%s: started in %.1f s", replica, now - replica.spawned)
            replica.node = answer
            self.nodes.add(answer)
            if replica.left not in (None, answer):  # else the engine itself has looked what its predecessor left
                self._untidy.add(replica.left)
            health.started()
            if self.own_version is not None:
                health.expect(0)
                health.verified(0)
        elif call.kind == "publishing":
            call.subject.gaps.append(answer)
            replica.asleep = False  # an update brings an engine back
            health.verified(call.subject.number)
        elif call.kind in ("sleeping", "waking"):
            replica.asleep = call.kind == "sleeping"
        elif call.kind == "heartbeat":
            health.answered()
        elif call.kind == "shutdown":
            health.retire()
        elif self.work.finish(call.subject, replica.incarnation):
            health.worked()
            self._bad_in_a_row = 0
            self.futures.pop(call.subject.number).finish(call.subject)

    def _raised(self, replica: EngineReplica, call: Call, error: BaseException, now: float) -> None:
        if call.kind == "starting" and isinstance(error, UserError):
            self.fatal = self.fatal or error
        if call.kind == "publishing" and isinstance(error, WeightsLostError):
            logger.warning("%s: %s", replica, error)
            call.subject.lost = error
            return
        if call.kind == "publishing" and isinstance(error, PublicationError):
            call.subject.refusals += 1
            if call.subject.refusals >= REFUSALS and not call.subject.gaps:
                self.fatal = self.fatal or error
        if call.kind == "generating" and not isinstance(error, ENGINE_FAULTS):
            if call.subject.number not in self.futures:
                return
            if isinstance(error, ObjectLostError):  # of what was encoded for it: the prompts are not at fault
                self.settle(self.futures[call.subject.number], error)
            else:
                self._suspect(call.subject, error, lethal=False)
            return
        self._fail(replica, f"{call.kind} failed: {last_line(error)}", now)

    # -- health --------------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> None:
        for replica in self.replicas:
            call = replica.overdue(now)
            if call is not None:
                self._fail(replica, f"{call.kind} took longer than {call.budget:.0f} s", now)
            elif replica.living:
                replica.health.check(now)
                if replica.health.state is State.DEAD:
                    self._fail(replica, replica.health.reason or "", now)
            if replica.node in self.draining and not replica.leaving:
                logger.warning("%s: its node is about to go; it finishes what it has", replica)
                self._leave(replica)

    def _fail(self, replica: EngineReplica, reason: str, now: float) -> None:
        """Give an engine up; what it had goes to another, in the end prompt by prompt."""
        replica.fail(reason, now)
        for shard in self.work.release(replica.incarnation):
            if shard.number not in self.futures:
                continue
            if shard.alone or shard.attempts >= max(1, self._config.max_failures - 1):
                if shard.alone and replica.health.state is State.DEAD:
                    replica.health.excused(now)
                self._suspect(shard, FleetError(f"the last engine that was lost on it, {replica}: {reason}"))

    def _suspect(self, shard: Shard, error: BaseException, lethal: bool = True) -> None:
        """Work that engines die of, or refuse: find the prompt at fault, and do without it.

        First every prompt is tried alone. One that fails alone is bad, unless it is the last of `SYSTEMIC` in a row:
        then it is not the prompts.
        """
        future = self.futures[shard.number]
        if not shard.alone:
            del self.futures[shard.number]
            parts = self.work.isolate(shard)
            future.isolate(shard, parts)
            self.futures |= {part.number: future for part in parts}
            logger.warning("%d prompts are sampled one by one: %s", len(parts), last_line(error))
            return
        (prompt,) = future.arguments[shard.number][0]
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= SYSTEMIC:
            error.add_note(f"{SYSTEMIC} prompts failed one after another, each alone; the last is {prompt.id}")
            self.settle(future, error)
            return
        self.work.forget([shard.number])
        del self.futures[shard.number]
        reason = f"no engine can sample it: {last_line(error)}"
        future.receive(shard, 0, BadUtterance(prompt.utterance.id, reason, lethal))
        future.finish(shard)

    def _leave(self, replica: EngineReplica) -> None:
        replica.leaving = True
        if replica.health.state is not State.DEAD:
            replica.health.drain()

    def _replace(self, now: float) -> None:
        """Restart the dead, and let go of those that leave once they have nothing left to do."""
        for replica in self.replicas:
            if replica.running and replica.health.state in (State.DEAD, State.RETIRED):
                replica.end()
            if replica.health.state is State.DEAD and not replica.leaving and not self.away and self.fatal is None:
                self._revive(replica, now)
            if not replica.leaving or replica.health.state is State.RETIRED:
                continue
            if replica.health.state is State.DEAD or replica.pending("starting"):
                if replica.running:
                    replica.end()
                replica.health.retire()
                if replica.node is not None:
                    self._untidy.add(replica.node)
            elif not any(replica.pending(kind) for kind in ("generating", "publishing", "shutdown")):
                replica.shutdown(now)
        for replica in [m for m in self.replicas if m.health.state is State.RETIRED]:
            self.replicas.remove(replica)

    def _revive(self, replica: EngineReplica, now: float) -> None:
        health = replica.health
        if not health.exhausted:
            if now >= health.restart_at:
                replica.spawn(now)
                health.restart(now)
                self.restarts += 1
            return
        others = [m for m in self.replicas if m is not replica and not m.leaving]
        reason = f"{replica} failed {health.failures} times in a row, the last time: {health.reason}"
        # Not only those that serve: between two publications none does for a moment.
        if len(others) >= self._config.min_count and any(m.living for m in others):
            logger.warning("%s; the fleet goes on without it", reason)
            self.wanted = len(others)
            self._leave(replica)
        else:
            self.fatal = FleetError(reason)

    def _tidy(self) -> None:
        """Where an engine died and none starts in its place, somebody else must look what it left."""
        if self._untidy:
            free_leftovers_on(self._untidy)
            self._untidy.clear()

    # -- what to ask for -----------------------------------------------------------------------------------------

    def _resize(self, now: float) -> None:
        staying = [m for m in self.replicas if not m.leaving]
        for _ in range(0 if self.away else self.wanted - len(staying)):
            slot = free_place(m.slot for m in self.replicas)
            replica = EngineReplica(slot, self._model, self._config, self.own_version, self._options, self._sleeps)
            if self.publication is not None:
                replica.health.expect(self.publication.number)
            replica.spawn(now)
            self.replicas.append(replica)
        # As in `Roster.adjust`: what has not started costs least.
        for replica in sorted(staying, key=lambda m: (not m.living, m.slot))[self.wanted :]:
            self._leave(replica)

    def _ask(self, now: float) -> None:
        for replica in self.replicas:
            self._take_turns(replica, now)
            replica.heartbeat(now)
        if not self.away:
            self._give_out(now)

    def _take_turns(self, replica: EngineReplica, now: float) -> None:
        """What the engine must do before it can serve: leave, come back, or take the current weights."""
        current = self.publication
        if not replica.living or any(replica.pending(kind) for kind in ("sleeping", "waking", "shutdown")):
            return
        if self.away:
            if not replica.asleep and not replica.pending("publishing"):
                replica.sleep(self.away == "kept", now)
        elif replica.health.state is State.STALE and current is not None and current.lost is None:
            if not any(call.subject is current for call in replica.pending("publishing")):
                replica.publish(current, now)
        elif replica.asleep:
            replica.wake(now)

    def _give_out(self, now: float) -> None:
        """Each waiting shard to the engine with least work. Engines that are being updated count, and their shards wait
        for them: otherwise the first that is updated would get everything."""
        awaited: dict[EngineReplica, int] = {
            m: self.work.load(m.incarnation)
            for m in self.replicas
            if m.health.serves or (m.health.state is State.STALE and m.pending("publishing"))
        }
        awaited = {m: load for m, load in awaited.items() if not self.work.has_one_alone(m.incarnation)}
        for shard in self.work.waiting():
            fit = [m for m, load in awaited.items() if not (shard.alone and load)]
            if not any(m.health.serves for m in awaited):
                return
            if not fit:
                continue
            replica = min(fit, key=lambda m: awaited[m])
            awaited[replica] += shard.size
            if replica.health.serves and not replica.asleep:
                replica.generate(shard, self.futures[shard.number].arguments[shard.number], now)
                self.work.assign(shard, replica.incarnation)
            if shard.alone:
                del awaited[replica]


def _sum(parts: Sequence[EngineStats]) -> EngineStats:
    names = [field.name for field in dataclasses.fields(EngineStats)]
    return EngineStats(**{name: sum(getattr(part, name) for part in parts) for name in names})
