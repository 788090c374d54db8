"""Batches on their way to the learner: encoded, sampled and scored beside it, in order.

Rewards do not wait for the last sample of a batch: the groups that go to a reward actor together go as soon as they are
sampled, whatever their order. Which go together is a matter of their number alone, and so are the rewards to the last
bit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from types import TracebackType

from cluster.config import RunConfig
from cluster.data.intake import PromptBatch
from cluster.fleet.rollout_future import RolloutFuture
from cluster.monitoring.phases import PhaseTimer
from cluster.system import System
from rollout.actors import EncodedRef
from speech.records import BadUtterance, Group

logger = logging.getLogger(__name__)

Scored = Future[list[Group | BadUtterance]]

JOIN_TIMEOUT_S = 10.0
"""How long `close` waits for a thread whose future it has cancelled."""


@dataclass(slots=True, eq=False, kw_only=True)
class RolloutBatch(PromptBatch[EncodedRef]):
    """The prompts of one training step, and how far their rollouts are.

    Attributes:
        number: of the step that trains it, counted from 0.
        past_lengths: by utterance, when the batch was begun, for the duration reward (`Group.past_lengths`).
        filled: set once its prompts are dealt out and encoded, or there is an error.
        future: the groups that engines are sampling.
        scored: once it is filled, part by part in order: for each prompt its group with rewards, or what is wrong with
            its utterance; or the error that came in between.
    """

    number: int
    past_lengths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    filled: threading.Event = field(default_factory=threading.Event)
    future: RolloutFuture | None = None
    scored: list[Scored] = field(default_factory=list)

    def fail(self, error: BaseException | None) -> None:
        """Whoever awaits what is not scored gets this error, or without one learns that it is cancelled."""
        self.scored = self.scored or [Future()]
        for part in self.scored:
            if error is None:
                part.cancel()
            elif not part.done():
                part.set_exception(error)
        self.filled.set()


class Rollouts:
    """Two threads carry batches from stage to stage: one encodes and submits, the other awaits the samples and scores.

    Each takes batches in the order in which they were started, so that a later one never overtakes; several may be
    sampled at the same time. An error stays with its batch, and comes out where the batch is awaited.
    """

    def __init__(
        self, config: RunConfig, system: System, timer: PhaseTimer, fill: Callable[[PromptBatch[EncodedRef]], None]
    ) -> None:
        """`fill` completes and encodes the prompts of a batch (`Intake.fill`)."""
        self._config, self._system, self._timer, self._fill = config, system, timer, fill
        self._to_encode: SimpleQueue[RolloutBatch | None] = SimpleQueue()
        self._to_score: SimpleQueue[RolloutBatch | None] = SimpleQueue()
        self._closed = False
        self._sampling: list[RolloutFuture] = []
        self._threads = [
            threading.Thread(target=self._serve, args=(self._to_encode, self._submit), name="encode", daemon=True),
            threading.Thread(target=self._serve, args=(self._to_score, self._finish), name="score", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, rollout_batch: RolloutBatch) -> None:
        """Begin with a batch; returns at once."""
        self._to_encode.put(rollout_batch)

    def run(self, rollout_batch: RolloutBatch) -> None:
        """Take a batch through all stages now, in this thread and ahead of those that wait."""
        self._begin(rollout_batch)
        self._finish(rollout_batch)

    def close(self) -> None:
        """Give up what is in flight and end the threads. Whoever awaits a batch that has no result gets an error."""
        self._closed = True
        # A copy: the other thread takes out what is cancelled. What is submitted after this line cancels itself.
        for future in list(self._sampling):
            future.cancel()
        # In this order: the first thread may still hand a batch to the second.
        for queue, thread in zip((self._to_encode, self._to_score), self._threads, strict=True):
            queue.put(None)
            thread.join(JOIN_TIMEOUT_S)
            if thread.is_alive():
                logger.warning("the %s thread still waits for an actor; it ends with the process", thread.name)

    def _begin(self, rollout_batch: RolloutBatch) -> None:
        self._fill(rollout_batch)
        rollout_batch.scored = [Future() for _ in self._system.rewards.shares(len(rollout_batch.prompts))]
        rollout_batch.filled.set()
        rollout_batch.future = self._system.fleet.submit(
            rollout_batch.prompts, rollout_batch.audio, self._config.sampling
        )
        self._sampling.append(rollout_batch.future)
        if self._closed:  # meanwhile
            rollout_batch.future.cancel()

    def _submit(self, rollout_batch: RolloutBatch) -> None:
        self._begin(rollout_batch)
        self._to_score.put(rollout_batch)

    def _finish(self, rollout_batch: RolloutBatch) -> None:
        future = rollout_batch.future
        assert future is not None
        rewards, shares = self._system.rewards, self._system.rewards.shares(len(rollout_batch.prompts))
        scoring: list[Future[None]] = []
        with ThreadPoolExecutor(rewards.wanted, "score") as actors, ExitStack() as reward:
            try:
                with self._timer.phase("generate"):  # the fleet bounds each attempt and each restart
                    waiting = list(range(len(shares)))
                    while waiting:
                        number = waiting.pop(future.first_of([shares[number] for number in waiting]))
                        if not scoring:
                            reward.enter_context(self._timer.phase("reward"))
                        sampled = [future.sampled[place] for place in shares[number]]
                        scoring.append(actors.submit(self._score, rollout_batch, number, sampled))
                    future.result(None)
            except BaseException:
                actors.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                self._sampling.remove(future)
            for scored in scoring:
                scored.result()

    def _score(self, rollout_batch: RolloutBatch, number: int, sampled: Sequence[Group | BadUtterance]) -> None:
        """What goes to a reward actor together: part `number` of the batch."""
        past = rollout_batch.past_lengths
        groups = [
            replace(item, past_lengths=past.get(item.prompt.utterance.id, ()))
            for item in sampled
            if not isinstance(item, BadUtterance)
        ]
        scored = iter(self._system.rewards.score(groups, together=True) if groups else ())
        outcomes = [item if isinstance(item, BadUtterance) else next(scored) for item in sampled]
        rollout_batch.scored[number].set_result(outcomes)

    def _serve(self, queue: SimpleQueue[RolloutBatch | None], stage: Callable[[RolloutBatch], None]) -> None:
        while (rollout_batch := queue.get()) is not None:
            if self._closed:
                rollout_batch.fail(None)
                continue
            try:
                stage(rollout_batch)
            except Exception as error:  # noqa: BLE001 - it is raised where the batch is awaited
                rollout_batch.fail(error)
