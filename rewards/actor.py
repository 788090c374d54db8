"""The reward actor and its pool. Scoring itself is `rewards.compose`; here are only processes and their failures."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rewards.compose import RewardComposition
from rewards.config import RewardConfig
from rewards.models import SoundModels
from rewards.sound_pipeline import CodecFactory, SoundPipeline
from speech.errors import UserError
from speech.records import Group, Reward
from speech.spans import KEPT, Span

logger = logging.getLogger(__name__)

_START_S = 180.0  # an actor imports torch and perhaps a judge before its first call; not charged to `timeout_s`
_CHUNKS_PER_WORKER = 4  # small enough that workers finish together, large enough that calls cost little


_START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Scored:
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

    def ready(self) -> None:
        """Returns once the composition is built and its models are loaded."""

    def score(self, groups: Sequence[Group]) -> _Scored:
        if self._sound is None:
            return _Scored([self._composition.score(group) for group in groups], Counter())
        self._sound.seconds.clear()
        return _Scored(self._sound.score(groups), Counter(self._sound.seconds))


# The pool restarts actors itself: Ray's own restart would hand a hung group to the same queue again.
_RemoteActor: Any = ray.remote(num_cpus=0.1, max_restarts=0)(RewardActor)


@dataclass(slots=True)
class _Job:
    places: list[int]  # of the groups, in the caller's order
    attempt: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    actor: Any
    pending: Any  # the reference that this worker owes: its start, or its job
    deadline: float
    job: _Job | None = None
    idle: bool = False
    assigned: float = 0.0  # when it got its job, in seconds since the epoch


@dataclass(slots=True)
class RewardCounts:
    """What a pool has done since it was made.

    Attributes:
        scored: samples with a valid reward.
        invalid: samples without one, by kind of reason (its first two parts, such as `accuracy: ValueError`).
        retried: groups that were tried again after a time-out or a lost actor.
        replaced: actors that were replaced.
        seconds: that actors spent scoring sound, by stage (`SoundPipeline.seconds`), summed over actors.
    """

    scored: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    replaced: int = 0
    seconds: Counter[str] = field(default_factory=Counter)


class RewardPool:
    """Scores groups on `workers` actors; a hung or dead actor is replaced and its groups are retried.

    A call that exceeds `timeout_s`, dies, or fails takes its actor with it. Its groups are then tried again *one by
    one* on a fresh actor or another, so that one bad group does not spoil its neighbours, and after `retries` such
    attempts their samples become invalid with the reason.

    Needs an initialised Ray. Calls of `score` from several threads are served one after another.

    Args:
        config: rewards and pool settings.
        codec: builds the codec in each actor, for trajectories that hold speech tokens; None scores records alone.

    Raises:
        UserError: a configuration error, found here and not in an actor, or settings out of range.
    """

    def __init__(self, config: RewardConfig, codec: CodecFactory | None = None) -> None:
        if config.workers < 1 or config.retries < 0 or not config.timeout_s > 0:
            raise UserError("rewards: workers is at least 1, retries at least 0, and timeout_s positive")
        composition = RewardComposition(config)  # a typo must not cost an actor's start
        SoundModels(config.sound).check(composition.needs)
        if composition.on_sound and codec is None:
            names = ", ".join(sorted(composition.on_sound))
            raise UserError(f"rewards.items: {names} score sound, and this run has no speech tokens")
        self.counts = RewardCounts()
        self._config = config
        self._codec = codec
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._spans: deque[tuple[int, Span]] = deque(maxlen=KEPT)
        self._workers = [self._start() for _ in range(config.workers)]

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with rewards, in the order given.

        Raises:
            RuntimeError: when an actor cannot be started.
        """
        with self._lock:
            try:
                return self._score(groups)
            finally:  # an interrupted call leaves jobs behind, whose answers belong to nobody
                for worker in self._workers:
                    worker.job = None

    def actors(self) -> list[Any]:
        """Handles of the actors now in use."""
        return [worker.actor for worker in self._workers]

    def spans(self) -> dict[str, list[Span]]:
        """What each actor did since the last call, from a job's dispatch to its answer, by `rewards <place>`."""
        taken: dict[str, list[Span]] = {f"rewards {place}": [] for place in range(len(self._workers))}
        while self._spans:
            place, span = self._spans.popleft()
            taken[f"rewards {place}"].append(span)
        return taken

    def close(self) -> None:
        """Ends the actors. The pool cannot be used afterwards."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()

    def _score(self, groups: Sequence[Group]) -> list[Group]:
        size = max(1, -(-len(groups) // (len(self._workers) * _CHUNKS_PER_WORKER)))
        places = range(len(groups))
        jobs = deque(_Job(list(places[start : start + size])) for start in range(0, len(groups), size))
        results: dict[int, Group] = {}
        while len(results) < len(groups):
            for worker in self._workers:
                if worker.idle and jobs:
                    self._assign(worker, jobs.popleft(), groups)
            waiting = [worker for worker in self._workers if not worker.idle]
            soonest = min(worker.deadline for worker in waiting)
            done, _ = ray.wait([w.pending for w in waiting], timeout=max(0.0, soonest - time.monotonic()))
            for worker in waiting:
                # Asked again when its time is up: wait() names one finished call, and there may be several.
                if worker.pending in done or (
                    time.monotonic() >= worker.deadline and ray.wait([worker.pending], timeout=0)[0]
                ):
                    self._collect(worker, jobs, groups, results)
                elif time.monotonic() >= worker.deadline:
                    reason = f"reward time-out: no answer in {self._config.timeout_s:g} s"
                    self._fail(worker, reason, jobs, groups, results)
        self._count(results)
        return [results[place] for place in places]

    def _start(self) -> _Worker:
        actor = _RemoteActor.remote(self._config, self._codec)
        return _Worker(actor, actor.ready.remote(), time.monotonic() + _START_S)

    def _assign(self, worker: _Worker, job: _Job, groups: Sequence[Group]) -> None:
        worker.pending = worker.actor.score.remote([groups[place] for place in job.places])
        worker.deadline = time.monotonic() + self._config.timeout_s
        worker.job, worker.idle, worker.assigned = job, False, time.time()

    def _collect(self, worker: _Worker, jobs: deque[_Job], groups: Sequence[Group], results: dict[int, Group]) -> None:
        try:
            scored: _Scored = ray.get(worker.pending)
        except RayError as error:
            kind = "reward actor: died" if isinstance(error, RayActorError) else "reward actor: failed"
            self._fail(worker, f"{kind}: {str(error).strip().splitlines()[-1]}", jobs, groups, results)
            return
        if worker.job is not None:
            self._note(worker, "score")
            results.update(zip(worker.job.places, scored.groups, strict=True))
            self.counts.seconds.update(scored.seconds)
        worker.job, worker.idle = None, True
        self._failed_starts = 0

    def _fail(
        self, worker: _Worker, reason: str, jobs: deque[_Job], groups: Sequence[Group], results: dict[int, Group]
    ) -> None:
        """Replaces the worker's actor, and retries or gives up its job."""
        job = worker.job
        if job is None:
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS:
                raise RuntimeError(f"reward actors do not start, {_START_ATTEMPTS} attempts failed: {reason}")
        logger.warning("%s; replacing the reward actor", reason)
        ray.kill(worker.actor)
        fresh = self._start()
        worker.actor, worker.pending, worker.deadline, worker.job = fresh.actor, fresh.pending, fresh.deadline, None
        self.counts.replaced += 1
        if job is None:
            return
        self._note(worker, "failed")
        if job.attempt < self._config.retries:
            self.counts.retried += len(job.places)
            jobs.extend(_Job([place], job.attempt + 1) for place in job.places)
            return
        for place in job.places:
            lost = Reward(total=None, invalid=f"{reason} (attempt {job.attempt + 1})")
            group = groups[place]
            results[place] = dataclasses.replace(group, rewards=(lost,) * len(group.trajectories))

    def _note(self, worker: _Worker, name: str) -> None:
        self._spans.append((self._workers.index(worker), Span(name, worker.assigned, time.time())))

    def _count(self, results: Mapping[int, Group]) -> None:
        for group in results.values():
            for reward in group.rewards:
                if reward.invalid is None:
                    self.counts.scored += 1
                else:
                    self.counts.invalid[": ".join(reward.invalid.split(": ")[:2])] += 1
