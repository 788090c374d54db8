"""The reward actor, and those that a pool has: who starts, who serves, who must go."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rewards.compose import RewardComposition
from rewards.config import RewardConfig
from rewards.sound_pipeline import CodecFactory, SoundPipeline
from speech.errors import last_line
from speech.records import Group

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
        self._sound = None if codec is None else SoundPipeline(config, codec())
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


@dataclass(slots=True, eq=False)
class Worker:
    """An actor, and what it does.

    Attributes:
        place: lowest number that was free when it started; what it is called in spans and messages.
        pending: the reference that it owes: its start, or its job.
        deadline: for that, on the monotonic clock.
        node: hex id, known once it has started.
        leaving: it finishes its job and gets no other.
        idle: it has started and owes nothing.
        assigned: when it got its job, in seconds since the epoch.
    """

    place: int
    actor: Any
    pending: Any
    deadline: float
    node: str | None = None
    leaving: bool = False
    job: Job | None = None
    idle: bool = False
    assigned: float = 0.0

    @property
    def serves(self) -> bool:
        """Whether it has started and stays."""
        return self.node is not None and not self.leaving


class Workers:
    """Brings the actors to the number that is wanted, and away from nodes that go. Never waits; not safe for threads,
    but for what is read of it.

    Attributes:
        wanted: how many there should be. May be set at any moment; `adjust` sees to it.
        replaced: actors that were replaced so far.
    """

    def __init__(
        self, config: RewardConfig, codec: CodecFactory | None, draining_nodes: Callable[[], set[str]]
    ) -> None:
        """See `RewardPool`."""
        self._config, self._codec, self._draining_nodes = config, codec, draining_nodes
        self.wanted = config.workers
        self.replaced = 0
        self._workers: list[Worker] = []
        self._failed_starts = 0
        self._nodes_asked: float | None = None

    def __iter__(self) -> Iterator[Worker]:
        """Those that leave included. The list may change meanwhile."""
        return iter(list(self._workers))

    def adjust(self) -> None:
        """Start actors that are missing, choose those that must go, and end those of them that have no job."""
        wanted = self.wanted
        staying = [worker for worker in self._workers if not worker.leaving]
        for worker in sorted(staying, key=lambda w: (w.node is None, w.place))[wanted:]:
            worker.leaving = True
        for worker in [w for w in self._workers if w.leaving and w.job is None]:
            self.end(worker)
        for _ in range(wanted - len(staying)):
            self._workers.append(self._start())

    def leave_nodes_that_go(self) -> None:
        """Nothing is lost with an actor between two jobs, so it is before its next one that it is replaced."""
        now = time.monotonic()
        if self._nodes_asked is not None and now - self._nodes_asked < NODES_S:
            return
        self._nodes_asked, going = now, self._draining_nodes()
        for worker in self._workers:
            if worker.node in going and not worker.leaving:
                logger.warning("replacing reward actor %d: its node is about to go", worker.place)
                worker.leaving = True
                self.replaced += 1

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
        self.end(worker)
        if any(w.serves for w in self._workers):
            self.wanted = sum(not w.leaving for w in self._workers)
            logger.warning("a reward actor does not start; scoring goes on with %d: %s", self.wanted, reason)
            return
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

    def end(self, worker: Worker) -> None:
        """Kill the actor."""
        ray.kill(worker.actor)
        self._workers.remove(worker)

    def _start(self) -> Worker:
        taken = {worker.place for worker in self._workers}
        place = next(place for place in itertools.count() if place not in taken)
        actor = _RemoteActor.remote(self._config, self._codec)
        return Worker(place, actor, actor.ready.remote(), time.monotonic() + START_S)


def answered(workers: Sequence[Worker], timeout: float) -> list[Worker]:
    """Wait until one of them has answered, at most `timeout` seconds; all that have."""
    refs = [worker.pending for worker in workers]
    if not refs or not ray.wait(refs, timeout=timeout)[0]:
        return []
    done = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])  # the first call names one of several
    return [worker for worker in workers if worker.pending in done]
