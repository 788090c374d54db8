"""Windows on their way to the learner: encoded, sampled and scored beside it, in order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from types import TracebackType

from cluster.config import RunConfig
from cluster.generation import Generation
from cluster.phases import PhaseTimer
from cluster.system import System
from rollout.actors import EncodedRef
from speech.records import Group, Prompt

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
"""How long `close` waits for a thread whose generation it has cancelled."""


@dataclass(slots=True, eq=False)
class Window:
    """The prompts of one training step, and what has become of them so far.

    Attributes:
        number: of the step that trains it, counted from 0.
        past_lengths: of each prompt, for the duration reward (`Group.past_lengths`).
        audio: encoded prompts, in order; empty before.
        generation: the groups that engines are sampling.
        scored: the groups with rewards, in the prompts' order, or the error that came in between.
    """

    number: int
    prompts: list[Prompt]
    past_lengths: list[tuple[int, ...]]
    audio: list[EncodedRef] = field(default_factory=list)
    generation: Generation | None = None
    scored: Future[list[Group]] = field(default_factory=Future)


class Rollouts:
    """Two threads carry windows from stage to stage: one encodes and submits, the other awaits the samples and scores.

    Each takes windows in the order in which they were started, so that a later one never overtakes; several may be
    sampled at the same time. An error stays with its window, and comes out where the window is awaited.
    """

    def __init__(self, config: RunConfig, system: System, timer: PhaseTimer) -> None:
        self._config, self._system, self._timer = config, system, timer
        self._to_encode: SimpleQueue[Window | None] = SimpleQueue()
        self._to_score: SimpleQueue[Window | None] = SimpleQueue()
        self._closed = False
        self._sampling: list[Generation] = []
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

    def start(self, window: Window) -> None:
        """Begin with a window; returns at once."""
        self._to_encode.put(window)

    def run(self, window: Window) -> None:
        """Take a window through all stages now, in this thread and ahead of those that wait."""
        self._begin(window)
        self._finish(window)

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedRef]:
        """Run the encoder once over the prompts' utterances."""
        with self._timer.phase("encode", self._config.engines.generate_timeout_s) as phase:
            utterances = [prompt.utterance for prompt in prompts]
            return self._system.encoders.encode(utterances, phase.remaining(), for_learner=True)

    def close(self) -> None:
        """Give up what is in flight and end the threads. Their windows never get a result."""
        self._closed = True
        for generation in self._sampling:
            generation.cancel()
        for queue in (self._to_encode, self._to_score):
            queue.put(None)
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
            if thread.is_alive():
                logger.warning("the %s thread still waits for an actor; it ends with the process", thread.name)

    def _begin(self, window: Window) -> None:
        window.audio = self.encode(window.prompts)
        window.generation = self._system.fleet.submit(window.prompts, window.audio, self._config.sampling)
        self._sampling.append(window.generation)
        if self._closed:  # meanwhile
            window.generation.cancel()

    def _submit(self, window: Window) -> None:
        self._begin(window)
        self._to_score.put(window)

    def _finish(self, window: Window) -> None:
        generation = window.generation
        assert generation is not None
        with self._timer.phase("generate"):  # the fleet bounds each attempt and each restart
            groups = generation.result(None)
        self._sampling.remove(generation)
        groups = [replace(g, past_lengths=past) for g, past in zip(groups, window.past_lengths, strict=True)]
        with self._timer.phase("reward"):
            window.scored.set_result(self._system.rewards.score(groups))

    def _serve(self, queue: SimpleQueue[Window | None], stage: Callable[[Window], None]) -> None:
        while (window := queue.get()) is not None:
            if self._closed:
                continue
            try:
                stage(window)
            except Exception as error:  # noqa: BLE001 - it is raised where the window is awaited
                window.scored.set_exception(error)
