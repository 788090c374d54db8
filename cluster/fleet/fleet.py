"""The fleet of rollout engines: work in, groups out, and engines that may come, go, die or hang at any moment."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.actors.model import ModelRef
from cluster.actors.remote import contiguous, draining_nodes, placed
from cluster.actors.scaling import FleetClock, ScalingPolicy
from cluster.fleet.health import Outage, State
from cluster.fleet.replica import EngineReplica, Publication
from cluster.fleet.rollout_future import FleetError, RolloutFuture, WithdrawnError
from cluster.fleet.supervisor import Supervisor
from cluster.monitoring.periodic import Periodic
from rollout.actors import EncodedRef
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine.stats import EngineStats
from speech.errors import PhaseTimeoutError
from speech.records import BadUtterance, Group, Prompt
from speech.runtime.weights import Probe

logger = logging.getLogger(__name__)

TICK_S = 0.5
"""How often the fleet is looked after while the controller does something else."""
STATS_TIMEOUT_S = 60.0
SHUTDOWN_TIMEOUT_S = 60.0
TRANSIENT = (RayError, ConnectionError)
"""What Ray's own calls raise while its head is away for a moment."""
FETCHED = "owner is unknown"
"""What Ray says of an item of a stream that nobody holds any more."""


class _NodeWatch(Periodic):
    """Asks Ray which nodes are announced to go.

    In a thread of its own: as long as the head of the cluster is away, Ray does not answer this, and the fleet would
    stand still.
    """

    def __init__(self, every_s: float, tell: Callable[[set[str]], None]) -> None:
        super().__init__("nodes", every_s)
        self._tell = tell

    def look(self) -> None:
        self._tell(draining_nodes())


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """Engines by what they do now, and totals since the start: of restarts, and of prompts that were given out again
    because their engine was lost."""

    healthy: int
    stale: int
    restarts: int
    reissued: int


class EngineFleet:
    """Engines as independent actors, between `engines.min` and `engines.max` of them.

    A thread of its own looks after them: it collects answers, notices the dead and the hung, restarts them, gives them
    the current weights and only then work. The same happens while somebody waits for a result.

    `submit`, `publish` and `result` may be called from different threads at the same time.
    """

    def __init__(
        self,
        model: ModelRef,
        config: EngineConfig,
        options: Callable[[int], dict[str, Any]] = lambda place: {},
        sleeps: bool = False,
    ) -> None:
        """
        Args:
            options: more of Ray's options for the engine in each place, such as its bundle.
            sleeps: engines leave their GPUs between their turns (`sleep`).
        """
        self.config, self.sleeps = config, sleeps
        self._engines = Supervisor(model, config, options, sleeps)
        self._policy = ScalingPolicy(config.min_count, config.max_count)
        self._clock = FleetClock()
        self._waiting = self._blocked = 0
        self._publications = 0
        self._outage = Outage()
        self._nodes = _NodeWatch(config.heartbeat_s, self._are_draining)
        # Guards all of the above, which the fleet's thread and the controller's share.
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, version: int | None) -> None:
        """Begin to start the engines; `ready` waits for them.

        Args:
            version: of the checkpoint's own weights; None makes the engines wait for a verified publication.
        """
        self._engines.own_version = version
        self._tick()
        self._thread = threading.Thread(target=self._look_after, name="fleet", daemon=True)
        self._thread.start()
        self._nodes.begin()

    def ready(self) -> None:
        """Wait until every engine of the fleet has loaded its model, each within `startup_timeout_s`.

        Raises:
            UserError: what an engine says about the model or the configuration.
            FleetError: an engine does not start, or finds no place in the cluster in that time while too few others
                run; to ask for the same place again would not help.
        """
        self._until(self._started, None, "start")

    def submit(self, prompts: Sequence[Prompt], audio: Sequence[EncodedRef], sampling: SamplingConfig) -> RolloutFuture:
        """Order a group for each prompt. Which engine samples a prompt depends on order and load alone."""
        pairs = list(zip(prompts, audio, strict=True))
        with self._lock:
            replicas = self._engines.replicas
            parts = sum(m.health.serves for m in replicas) or sum(not m.leaving for m in replicas) or 1
            shares = [share for share in contiguous(pairs, parts) if share]
            shards = self._engines.work.add(len(share) for share in shares)
            arguments = {
                shard.number: ([p for p, _ in share], [a.ref for _, a in share], sampling)
                for shard, share in zip(shards, shares, strict=True)
            }
            future = RolloutFuture(shards, arguments, self._tick, self._wait_for, self._withdraw)
            self._engines.futures |= {shard.number: future for shard in shards}
            self._tick()
        return future

    def generate(
        self, prompts: Sequence[Prompt], audio: Sequence[EncodedRef], sampling: SamplingConfig, timeout: float | None
    ) -> list[Group | BadUtterance]:
        """`submit`, and its result."""
        with self.learner_blocked():
            return self.submit(prompts, audio, sampling).result(timeout)

    @contextmanager
    def learner_blocked(self) -> Iterator[None]:
        """Nothing else goes on until samples come. Such time speaks for more engines; a wait beside the learner does
        not."""
        with self._lock:
            self._blocked += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocked -= 1

    def publish(
        self,
        version: int,
        buckets: Sequence[ray.ObjectRef],
        probes: Sequence[Probe],
        timeout: float | None,
        in_flight: bool = False,
    ) -> float:
        """Load and verify new weights on all engines; the largest of their mean |Δ log-prob| on a probe.

        An engine that cannot verify them is restarted and gets them again, with another probe; this waits for it only
        when there is no other. The references are kept for engines that start later.

        Args:
            timeout: of one engine's update, in seconds; None takes `engines.update_timeout_s`.
            in_flight: running samples go on under the new weights; otherwise they end under the old ones first.

        Raises:
            PublicationError: two engines, of which one may be the other's successor, refused the weights and none
                took them.
            WeightsLostError: they are gone, with their node, before an engine took them.
            FleetError: engines fail again and again.
        """
        with self._lock:
            self._publications += 1
            limit = self.config.update_timeout_s if timeout is None else timeout
            current = Publication(self._publications, version, tuple(buckets), tuple(probes), limit, in_flight)
            self._engines.publication = current
            for replica in self._engines.replicas:
                replica.health.expect(current.number)
            self._engines.away = None
            self._rescale()
        self._until(lambda: self._published(current), None, "publish")
        return max(current.gaps)

    def sleep(self, timeout: float | None, keep_weights: bool = False) -> None:
        """Leave the GPUs, until the next publication, or with `keep_weights` until `wake`.

        Until then no engine is started or restarted either. One that cannot leave is killed.

        Raises:
            PhaseTimeoutError: saying what the fleet looks like.
        """
        with self._lock:
            self._engines.away = "kept" if keep_weights else "discarded"
        self._until(lambda: all(m.gone for m in self._engines.replicas), timeout, "engine sleep")

    def wake(self, timeout: float | None) -> None:
        """Come back with the weights that were kept. Raises PhaseTimeoutError."""
        with self._lock:
            self._engines.away = None
        self._until(lambda: not any(m.asleep for m in self._engines.replicas), timeout, "engine wake-up")

    def abandon(self) -> None:
        """Forget all work that was ordered: training goes back to a checkpoint and orders it again."""
        with self._lock:
            for future in set(self._engines.futures.values()):
                self._engines.settle(future, FleetError("training went back to its last checkpoint"))

    def stats(self) -> EngineStats:
        """Totals over all engines since the start; those of lost ones as far as they were known."""
        with self._lock:
            living = [(str(m), m.incarnation, m.actor) for m in self._engines.replicas if m.living]
        told = {}
        try:
            asked = {actor.stats.remote(): (name, incarnation) for name, incarnation, actor in living}
            answered = ray.wait(list(asked), num_returns=len(asked), timeout=STATS_TIMEOUT_S)[0] if asked else []
            for ref in answered:
                name, incarnation = asked[ref]
                try:
                    told[incarnation] = ray.get(ref)
                except RayError as error:  # its heartbeat, or its next call, will say so too
                    logger.info("%s does not tell its statistics: %s", name, error)
        except TRANSIENT as error:
            logger.info("Ray does not let the engines be asked for their statistics: %s", error)
        with self._lock:
            self._engines.told |= told
            return self._engines.stats()

    def counts(self) -> FleetCounts:
        """For the metrics."""
        with self._lock:
            states = [m.health.state for m in self._engines.replicas]
            healthy = states.count(State.HEALTHY) + states.count(State.SUSPECT)
            stale = sum(states.count(state) for state in (State.STALE, State.RESTARTING, State.DEAD))
            return FleetCounts(healthy, stale, self._engines.restarts, self._engines.work.reissued)

    def actors(self) -> dict[str, Any]:
        """Handles of the engines that run, by name (`engine 0`)."""
        with self._lock:
            return {str(m): m.actor for m in self._engines.replicas if m.living}

    def replicas(self) -> list[EngineReplica]:
        """The engines as they are now, for those that watch or disturb them."""
        with self._lock:
            return list(self._engines.replicas)

    def engines_on(self) -> set[str]:
        """Hex ids of the nodes that the engines are on now."""
        with self._lock:
            return {m.node for m in self._engines.replicas if m.running and m.node is not None}

    def nodes(self) -> set[str]:
        """Hex ids of the nodes that have had engines."""
        with self._lock:
            return set(self._engines.nodes)

    def shutdown(self) -> None:
        """End the engines in an orderly way; those that do not end so are killed.

        Raises:
            PhaseTimeoutError, RayError: where that does not work.
        """
        self._stop.set()
        self._nodes.end()
        if self._thread is not None:
            self._thread.join()
        living = [m for m in self._engines.replicas if m.living]
        calls = [m.actor.shutdown.remote() for m in living]
        try:
            ray.get(calls, timeout=SHUTDOWN_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            detail = f"no answer from {len(calls)} engines"
            raise PhaseTimeoutError("engine shutdown", SHUTDOWN_TIMEOUT_S, detail) from None
        finally:
            for replica in self._engines.replicas:
                replica.end()

    def _tick(self) -> None:
        with self._lock:
            now = time.monotonic()
            staying = [m for m in self._engines.replicas if not m.leaving]
            busy = sum(bool(m.pending("generating")) for m in staying)
            self._clock.advance(now, len(staying), busy, self._waiting > 0 and self._blocked > 0)
            try:
                self._engines.tick(now)
            except TRANSIENT as error:
                if self._outage.failed(now):
                    limit = self._outage.limit_s
                    logger.warning("Ray fails the fleet: %s; it tries again for up to %.0f s", error, limit)
                if self._outage.lasts_too_long(now):
                    raise
            else:
                self._outage.over()

    def _are_draining(self, nodes: set[str]) -> None:
        with self._lock:
            self._engines.draining = nodes

    def _look_after(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self._tick()
            except Exception as error:  # whoever waits for the fleet must hear of it
                logger.exception("the fleet cannot be looked after")
                with self._lock:
                    self._engines.fatal = self._engines.fatal or error

    def _withdraw(self, future: RolloutFuture) -> None:
        with self._lock:
            if not future.complete:
                self._engines.settle(future, WithdrawnError("these samples were cancelled"))

    def _wait_for(self, future: RolloutFuture, timeout: float | None, enough: Callable[[], bool]) -> None:
        with self._lock:
            self._waiting += 1
        try:
            self._until(lambda: future.complete or enough(), timeout, "generate")
        finally:
            with self._lock:
                self._waiting -= 1

    def _until(self, finished: Callable[[], bool], timeout: float | None, what: str) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._tick()
            with self._lock:
                if finished():
                    return
                if self._engines.fatal is not None:
                    raise self._engines.fatal
                if self._engines.weights_lost is not None:
                    raise self._engines.weights_lost
                calls = [call.awaited for replica in self._engines.replicas for call in replica.calls]
                state = "; ".join(
                    f"{m} is {m.health.state}" + (f" ({m.health.reason})" if m.health.reason else "")
                    for m in self._engines.replicas
                )
            left = TICK_S if deadline is None else min(TICK_S, deadline - time.monotonic())
            if timeout is not None and left <= 0:
                raise PhaseTimeoutError(what, timeout, state)
            try:
                if calls:
                    ray.wait(calls, timeout=left)
                else:
                    time.sleep(min(left, 0.05))
            except TRANSIENT:  # the next tick fails too, and judges it
                time.sleep(min(left, TICK_S))
            except ValueError as error:
                # Another thread has fetched, and let go of, the group that this one was about to wait for.
                if FETCHED not in str(error):
                    raise

    def _started(self) -> bool:
        replicas, limit, now = self._engines.replicas, self.config.startup_timeout_s, time.monotonic()
        if sum(m.living for m in replicas) < self.config.min_count:
            for late in [m for m in replicas if m.pending("starting") and now - m.spawned >= limit]:
                if not placed(late.actor):
                    raise FleetError(f"{late} found no place within {limit:.0f} s")
        return all(m.living for m in replicas)

    def _published(self, publication: Publication) -> bool:
        states = [m.health.state for m in self._engines.replicas]
        waiting = State.STALE in states and not publication.lost
        return bool(publication.gaps) and not waiting and State.HEALTHY in states

    def _rescale(self) -> None:
        """Once per publication, which is once per step: what does the last step say about the fleet's size?"""
        seen, engines = self._clock.take(), self._engines
        changing = any(not m.living or m.leaving for m in engines.replicas) or len(engines.replicas) != engines.wanted
        # The clock may not have heard yet of an engine that was given up; its size would bring that one back.
        if changing or (seen is not None and seen.actors != engines.wanted):
            self._policy.forget()
        elif seen is not None:
            wanted = self._policy.observe(seen)
            if wanted != engines.wanted:
                logger.info("fleet: from %d to %d engines (%s)", engines.wanted, wanted, seen)
            engines.wanted = wanted
