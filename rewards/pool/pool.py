"""The reward actors as one pool. Scoring itself is `rewards.compose`; here are only processes and their failures."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rewards.compose import RewardComposition
from rewards.config import RewardConfig
from rewards.listening.models import SoundModels
from rewards.pipeline import CodecFactory
from rewards.pool.actor import START_S, Job, Scored, Worker, Workers, answered
from speech.errors import UserError, last_line
from speech.records import Group, Reward
from speech.runtime.spans import KEPT, Span

_CHUNKS_PER_WORKER = 4  # small enough that workers finish together, large enough that calls cost little


@dataclass(slots=True)
class RewardCounts:
    """What a pool has done since it was made.

    Attributes:
        scored: samples with a valid reward.
        invalid: samples without one, by kind of reason (its first two parts, such as `accuracy: ValueError`).
        retried: groups that were tried again after a time-out or a lost actor.
        seconds: that actors spent scoring sound, by stage (`SoundPipeline.seconds`), summed over actors.
    """

    scored: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    seconds: Counter[str] = field(default_factory=Counter)


class RewardPool:
    """Scores groups on actors; a hung or dead actor is replaced and its groups are retried.

    A call that exceeds `timeout_s`, dies, or fails takes its actor with it. Its groups are then tried again *one by
    one* on a fresh actor or another, so that one bad group does not spoil its neighbours, and after `retries` such
    attempts their samples become invalid with the reason.

    There are `count` actors until `resize` says otherwise. An actor gets work once it has started; until then the
    others do it all, and one that does not start is done without. An actor that must go finishes its job first.

    Needs an initialised Ray. Calls of `score` from several threads are served one after another; all else may be called
    meanwhile.

    Args:
        config: rewards and pool settings.
        codec: builds the codec in each actor, for trajectories that hold speech tokens; None scores records alone.
        draining_nodes: hex ids of the nodes that are announced to go. Actors there are replaced before their next job.

    Raises:
        UserError: a configuration error, found here and not in an actor, or settings out of range.
    """

    def __init__(
        self,
        config: RewardConfig,
        codec: CodecFactory | None = None,
        draining_nodes: Callable[[], set[str]] = lambda: set(),
    ) -> None:
        if config.count < 1 or config.retries < 0 or not config.timeout_s > 0:
            raise UserError("rewards: count is at least 1, retries at least 0, and timeout_s positive")
        composition = RewardComposition(config)  # a typo must not cost an actor's start
        SoundModels(config.sound).check(composition.needs)
        if composition.on_sound and codec is None:
            names = ", ".join(sorted(composition.on_sound))
            raise UserError(f"rewards.items: {names} score sound, and this run has no speech tokens")
        self.counts = RewardCounts()
        self._config = config
        self._lock = threading.Lock()
        self._spans: deque[tuple[int, Span]] = deque(maxlen=KEPT)
        self._workers = Workers(config, codec, draining_nodes)
        self._workers.adjust()

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with rewards, in the order given.

        Raises:
            RuntimeError: when no actor can be started.
        """
        with self._lock:
            try:
                return self._score(groups)
            finally:  # an interrupted call leaves jobs behind, whose answers belong to nobody
                for worker in self._workers:
                    worker.job = None

    @property
    def wanted(self) -> int:
        """How many actors there should be."""
        return self._workers.wanted

    @property
    def replaced(self) -> int:
        """Actors that were replaced so far, those included that left a node before it went."""
        return self._workers.replaced

    def resize(self, wanted: int) -> None:
        """Let actors start, or go once they have finished their jobs. Waits for neither.

        Raises:
            RuntimeError: when no actor can be started.
        """
        self._workers.wanted = wanted
        self._look_after()

    def serving(self) -> int:
        """How many actors have started and stay.

        Raises:
            RuntimeError: when no actor can be started.
        """
        self._look_after()
        return sum(worker.serves for worker in self._workers)

    def actors(self) -> list[Any]:
        """Handles of the actors now in use."""
        return [worker.actor for worker in self._workers]

    def spans(self) -> dict[str, list[Span]]:
        """What each actor did since the last call, from a job's dispatch to its answer, by `rewards <place>`."""
        taken: dict[str, list[Span]] = {f"rewards {w.place}": [] for w in self._workers if w.serves}
        while self._spans:
            place, span = self._spans.popleft()
            taken.setdefault(f"rewards {place}", []).append(span)
        return taken

    def close(self) -> None:
        """Ends the actors. The pool cannot be used afterwards."""
        for worker in self._workers:
            self._workers.end(worker)

    def _score(self, groups: Sequence[Group]) -> list[Group]:
        size = max(1, -(-len(groups) // (self.wanted * _CHUNKS_PER_WORKER)))
        places = range(len(groups))
        jobs = deque(Job(list(places[start : start + size])) for start in range(0, len(groups), size))
        results: dict[int, Group] = {}
        while len(results) < len(groups):
            self._workers.leave_nodes_that_go()
            self._workers.adjust()
            for worker in self._workers:
                if worker.idle and jobs:
                    self._assign(worker, jobs.popleft(), groups)
            waiting = [worker for worker in self._workers if not worker.idle]
            soonest = min(worker.deadline for worker in waiting)
            for worker in answered(waiting, max(0.0, soonest - time.monotonic())):
                self._collect(worker, jobs, groups, results)
                waiting.remove(worker)
            for worker in waiting:
                if time.monotonic() >= worker.deadline:
                    self._overdue(worker, jobs, groups, results)
        self._count(results)
        return [results[place] for place in places]

    def _look_after(self) -> None:
        """Bring the actors to what is wanted, unless `score` is at work and does it."""
        if self._lock.acquire(blocking=False):
            try:
                for worker in answered([w for w in self._workers if w.node is None], 0.0):
                    self._workers.started(worker)
                self._workers.adjust()
            finally:
                self._lock.release()

    def _assign(self, worker: Worker, job: Job, groups: Sequence[Group]) -> None:
        worker.pending = worker.actor.score.remote([groups[place] for place in job.places])
        worker.deadline = time.monotonic() + self._config.timeout_s
        worker.job, worker.idle, worker.assigned = job, False, time.time()

    def _collect(self, worker: Worker, jobs: deque[Job], groups: Sequence[Group], results: dict[int, Group]) -> None:
        if worker.node is None:
            self._workers.started(worker)
            return
        try:
            scored: Scored = ray.get(worker.pending)
        except RayError as error:
            kind = "reward actor: died" if isinstance(error, RayActorError) else "reward actor: failed"
            self._fail(worker, f"{kind}: {last_line(error)}", jobs, groups, results)
            return
        if worker.job is not None:
            self._note(worker, "score")
            results.update(zip(worker.job.places, scored.groups, strict=True))
            self.counts.seconds.update(scored.seconds)
        worker.job, worker.idle = None, True

    def _overdue(self, worker: Worker, jobs: deque[Job], groups: Sequence[Group], results: dict[int, Group]) -> None:
        if worker.node is None:
            self._workers.not_started(worker, f"no sign of life in {START_S:g} s")
        else:
            reason = f"reward time-out: no answer in {self._config.timeout_s:g} s"
            self._fail(worker, reason, jobs, groups, results)

    def _fail(
        self, worker: Worker, reason: str, jobs: deque[Job], groups: Sequence[Group], results: dict[int, Group]
    ) -> None:
        """Gives up the worker's actor, and retries or gives up its job."""
        self._workers.lost(worker, reason)
        job = worker.job
        if job is None:
            return
        self._note(worker, "failed")
        if job.attempt < self._config.retries:
            self.counts.retried += len(job.places)
            jobs.extend(Job([place], job.attempt + 1) for place in job.places)
            return
        for place in job.places:
            lost = Reward(total=None, invalid=f"{reason} (attempt {job.attempt + 1})")
            group = groups[place]
            results[place] = dataclasses.replace(group, rewards=(lost,) * len(group.trajectories))

    def _note(self, worker: Worker, name: str) -> None:
        self._spans.append((worker.place, Span(name, worker.assigned, time.time())))

    def _count(self, results: Mapping[int, Group]) -> None:
        for group in results.values():
            for reward in group.rewards:
                if reward.invalid is None:
                    self.counts.scored += 1
                else:
                    self.counts.invalid[": ".join(reward.invalid.split(": ")[:2])] += 1
