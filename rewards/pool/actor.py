"""The reward actor, and those that a pool has: who starts, who serves, who must go."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rewards.compose import RewardComposition
from rewards.config import RewardConfig
from rewards.pipeline import CodecFactory, SoundPipeline
from speech.errors import last_line
from speech.records import Group
from speech.runtime.roster import PoolActor, Roster

logger = logging.getLogger(__name__)

START_S = 180.0
"""An actor imports torch and perhaps a judge before its first call; not charged to `timeout_s`."""
START_ATTEMPTS = 3
NODES_S = 10.0
"""Between two questions which nodes will go."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What an actor answers: groups with rewards, and the seconds that its stages took."""

    groups: list[Group]
    seconds: Counter[str]


class RewardActor:
    """One process that scores groups by a `RewardComposition`, or with a codec by a `SoundPipeline`."""

    def __init__(self, config: RewardConfig, codec: CodecFactory | None = None) -> None:
        self._composition = RewardComposition(config)
        self._sound = None if codec is None else SoundPipeline(config, codec)
        if self._sound is not None:
            self._sound.load()

    def ready(self) -> str:
        """Returns once the composition is built and its models are loaded: the hex id of the node."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def score(self, groups: Sequence[Group]) -> Scored:
        if self._sound is None:
            return Scored([self._composition.score(group) for group in groups], Counter())
        self._sound.seconds.clear()
        return Scored(self._sound.score(groups), Counter(self._sound.seconds))


# They are replaced here: Ray's own restart would hand a hung group to the same queue again.
_RemoteActor: Any = ray.remote(num_cpus=0.1, max_restarts=0)(RewardActor)


@dataclass(slots=True)
class Job:
    """Groups to be scored in one call.

    Attributes:
        places: of the groups, in the caller's order.
        attempt: how often it was tried before.
    """

    places: list[int]
    attempt: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Worker(PoolActor):
    """An actor, and what it does.

    Attributes:
        pending: the reference that it owes: its start, or its job. `deadline` is for that.
        idle: it has started and owes nothing.
        assigned: when it got its job, in seconds since the epoch.
    """

    pending: Any
    job: Job | None = None
    idle: bool = False
    assigned: float = 0.0


class Workers(Roster[Worker]):
    """The roster of a `RewardPool`."""

    def __init__(
        self, config: RewardConfig, codec: CodecFactory | None, draining_nodes: Callable[[], set[str]]
    ) -> None:
        """See `RewardPool`."""
        super().__init__("rewards", config.count)
        self._config, self._codec, self._draining_nodes = config, codec, draining_nodes
        self._failed_starts = 0
        self._nodes_asked: float | None = None

    def leave_nodes_that_go(self) -> None:
        """Ask now and then which nodes will go, and leave them."""
        now = time.monotonic()
        if self._nodes_asked is None or now - self._nodes_asked >= NODES_S:
            self._nodes_asked = now
            self.leave_nodes(self._draining_nodes())

    def started(self, worker: Worker) -> None:
        """Take a worker's answer to its start.

        Raises:
            RuntimeError: too many starts in a row have failed, and no other actor serves.
        """
        try:
            worker.node = ray.get(worker.pending)
        except RayError as error:
            self.not_started(worker, last_line(error))
        else:
            worker.idle = True
            self._failed_starts = 0

    def not_started(self, worker: Worker, reason: str) -> None:
        """Go on without it where others serve, until more are wanted; otherwise another is started.

        Raises:
            RuntimeError: see `started`.
        """
        if self.do_without(worker, reason):
            return
        self.end(worker)
        self._failed_starts += 1
        if self._failed_starts >= START_ATTEMPTS:
            raise RuntimeError(f"reward actors do not start, {START_ATTEMPTS} attempts failed: {reason}")
        logger.warning("a reward actor does not start, another is started: %s", reason)
        self.replaced += 1

    def lost(self, worker: Worker, reason: str) -> None:
        """End a worker that has failed; `adjust` starts another in its place."""
        logger.warning("reward actor %d is lost: %s", worker.place, reason)
        self.end(worker)
        if not worker.leaving:
            self.replaced += 1

    def end(self, member: Worker) -> None:
        """Kill the actor."""
        ray.kill(member.actor)
        self._members.remove(member)

    def _start(self, place: int) -> Worker:
        actor = _RemoteActor.remote(self._config, self._codec)
        pending = actor.ready.remote()
        return Worker(place=place, actor=actor, deadline=time.monotonic() + START_S, pending=pending)

    def _is_busy(self, member: Worker) -> bool:
        return member.job is not None


def answered(workers: Sequence[Worker], timeout: float) -> list[Worker]:
    """Wait until one of them has answered, at most `timeout` seconds; all that have."""
    refs = [worker.pending for worker in workers]
    if not refs or not ray.wait(refs, timeout=timeout)[0]:
        return []
    done = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])  # the first call names one of several
    return [worker for worker in workers if worker.pending in done]
