"""One slot in the fleet: the engine actor that holds it, what that actor owes, and what is believed of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from cluster.actors.model import ModelRef
from cluster.fleet.assignments import Shard
from cluster.fleet.health import LIVING, Health, HealthLimits, State
from rollout.actors import EngineActor
from rollout.config import EngineConfig
from rollout.environment import engine_options
from rollout.errors import WeightsLostError
from speech.runtime.weights import Probe

logger = logging.getLogger(__name__)

GRACE_S = 15.0
"""An engine has time-outs of its own, whose message says more; this long the fleet waits for that message."""

_incarnations = itertools.count(1)

Kind = Literal["starting", "publishing", "generating", "sleeping", "waking", "heartbeat", "shutdown"]


@dataclass(slots=True)
class Publication:
    """Weights that all engines must hold and prove.

    Attributes:
        number: never used twice, while a policy version can be, after a return to a checkpoint.
        buckets: references that the controller owns: they outlive the learner.
        probes: of other tokens each, so that an engine that is tried again is asked something else.
        timeout: of one engine's update, in seconds.
        gaps: mean |Δ log-prob| of each engine that verified it.
        refusals: engines that could not verify it.
        lost: why no engine can have it any more.
    """

    number: int
    version: int
    buckets: Sequence[ray.ObjectRef]
    probes: Sequence[Probe]
    timeout: float
    in_flight: bool
    gaps: list[float] = field(default_factory=list)
    refusals: int = 0
    lost: WeightsLostError | None = None

    @property
    def probe(self) -> Probe:
        """For the next attempt: no engine is given up, and none is accepted, for the same tokens again."""
        return self.probes[self.refusals % len(self.probes)]


@dataclass(slots=True)
class Call:
    """What an actor owes.

    Attributes:
        ref: to its answer; where engines generate, to one group after another.
        deadline: on the monotonic clock; None for heartbeats, which `Health` judges.
        budget: seconds that the deadline stands for.
        subject: the shard of work or the publication that it is about.
        item: reference to the group that is there and was not fetched yet.
    """

    kind: Kind
    ref: ray.ObjectRef | ray.ObjectRefGenerator
    deadline: float | None
    budget: float
    subject: Any = None
    item: ray.ObjectRef | None = None

    @property
    def awaited(self) -> ray.ObjectRef | ray.ObjectRefGenerator:
        """What to wait for."""
        return self.ref if self.item is None else self.item


class EngineReplica:
    """Knows how to ask an engine for things; when and what for, the fleet decides.

    Attributes:
        slot: number of the slot, kept over restarts; what it is called in messages.
        incarnation: number of the actor, never used twice.
        leaving: it will not be restarted.
        node: hex id of the node it runs on, once known.
        left: hex id of the node that the actor before this one ran on, where it is known.
        asleep: it has left its GPU.
        running: its actor was asked for and is not killed.
        spawned: when its actor was asked for, on the monotonic clock.
    """

    def __init__(
        self,
        slot: int,
        model: ModelRef,
        config: EngineConfig,
        own_version: int | None,
        options: Callable[[int], dict[str, Any]] = lambda slot: {},
        sleeps: bool = False,
    ) -> None:
        """`own_version`: see `EngineFleet.start`; `options` and `sleeps`: see `EngineFleet`."""
        self.slot, self._model, self._config, self._own_version = slot, model, config, own_version
        self._options, self._sleeps = options(slot), sleeps
        limits = HealthLimits(config.heartbeat_timeout_s / 2, config.heartbeat_timeout_s, config.max_failures)
        self.health = Health(limits)
        self.calls: list[Call] = []
        self.leaving = False
        self.node: str | None = None
        self.left: str | None = None
        self.asleep = self.running = False
        self.last_heartbeat = self.spawned = 0.0

    def __str__(self) -> str:
        return f"engine {self.slot}"

    @property
    def living(self) -> bool:
        """Whether its actor runs, and ought to answer."""
        return self.health.state in LIVING and not self.pending("starting")

    @property
    def gone(self) -> bool:
        """Whether its GPU is free of it."""
        return self.asleep or (self.health.state not in LIVING and not self.pending("starting"))

    def pending(self, kind: Kind) -> list[Call]:
        """Calls of a kind that are not answered."""
        return [call for call in self.calls if call.kind == kind]

    def spawn(self, now: float) -> None:
        """Start an actor in this slot."""
        self.incarnation = next(_incarnations)
        self.actor = EngineActor.options(**engine_options(self._config) | self._options).remote(  # type: ignore[attr-defined]
            self._model.path, self._model.family, self._config, self._model.options, self._sleeps
        )
        self.left = self.node or self.left
        self.node, self.asleep, self.running, self.spawned = None, False, True, now
        self._ask("starting", self.actor.start.remote(self._own_version), now, self._config.startup_timeout_s)

    def publish(self, publication: Publication, now: float) -> None:
        call = self.actor.update_weights.remote(
            publication.version, list(publication.buckets), publication.probe, publication.in_flight
        )
        self._ask("publishing", call, now, publication.timeout, publication)
        for running in self.pending("generating"):
            # The engine lets it end or freezes it, and answers it only when the publication is verified.
            assert running.deadline is not None
            running.deadline += publication.timeout

    def generate(self, shard: Shard, arguments: tuple[Any, ...], now: float) -> None:
        call = self.actor.generate.options(num_returns="streaming").remote(*arguments)
        self._ask("generating", call, now, self._config.generate_timeout_s, shard)

    def heartbeat(self, now: float) -> None:
        """Ask for a sign of life, unless the last one is not answered, or other time-outs are in force."""
        due = now - self.last_heartbeat >= self._config.heartbeat_s
        busy = any(self.pending(kind) for kind in ("heartbeat", "publishing", "sleeping", "waking", "shutdown"))
        if due and self.living and not self.asleep and not busy:
            self.calls.append(Call("heartbeat", self.actor.health.remote(), None, 0.0))
            self.last_heartbeat = now
            self.health.asked(now)

    def sleep(self, keep_weights: bool, now: float) -> None:
        self.health.suspend_heartbeat()
        # Running samples end first.
        self._ask("sleeping", self.actor.sleep.remote(keep_weights), now, self._config.generate_timeout_s)

    def wake(self, now: float) -> None:
        self._ask("waking", self.actor.wake.remote(), now, self._config.update_timeout_s)

    def cancel(self, call: Call) -> None:
        """Stop a call that was not answered; its answer does not count."""
        self.calls.remove(call)
        ray.cancel(call.ref)

    def shutdown(self, now: float) -> None:
        """Let it end in order; to what it was asked before it now answers with errors."""
        self.health.suspend_heartbeat()
        self.calls.clear()
        self._ask("shutdown", self.actor.shutdown.remote(), now, 60.0)

    def overdue(self, now: float) -> Call | None:
        """A call whose time is up."""
        return next((call for call in self.calls if call.deadline is not None and now >= call.deadline), None)

    def fail(self, reason: str, now: float) -> None:
        """Give its actor up, dead or not; nothing that it still answers counts. `end` is still to be called."""
        if self.health.state is not State.DEAD:  # of silence it is dead already
            self.health.failed(reason, now)
        wait = self.health.restart_at - now
        later = f"; it is not started again for {wait:.0f} s" if wait > 0 and not self.health.exhausted else ""
        logger.warning("%s: %s%s", self, reason, later)
        self.calls.clear()

    def end(self) -> None:
        """Kill the actor."""
        ray.kill(self.actor)
        self.calls.clear()
        self.asleep = self.running = False

    def _ask(self, kind: Kind, ref: ray.ObjectRef, now: float, budget: float, subject: Any = None) -> None:
        self.calls.append(Call(kind, ref, now + budget + GRACE_S, budget, subject))
