"""Writing checkpoints beside the training: one at a time, in order, each counting only once it is whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cluster.config import CheckpointConfig
from cluster.runs import durable
from cluster.runs.checkpoints import STATE_FILE, CheckpointFolder
from speech.errors import PhaseTimeoutError, UserError

_POLL_S = 0.02


class StateWriter(Protocol):
    """The learner, as far as checkpoints go."""

    def save_in_background(self, folder: str, copy: bool) -> None:
        """Begin to write the state below a folder: a copy of it, or as it is until `saved`."""

    def saved(self) -> bool:
        """Whether it is written; raises UserError when the disk refused. Does not wait."""


class CheckpointSaver:
    """Takes checkpoints of a run: the learner's shards and export, then `state.json`, digests, rename, retention."""

    def __init__(
        self,
        checkpoints: CheckpointFolder,
        learner: StateWriter,
        config: CheckpointConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints, self._learner, self._config, self._clock = checkpoints, learner, config, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._step: int | None = None
        self._state = ""
        self._staged = Path()
        self._began = 0.0
        self._commit: Future[None] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin the checkpoint of a step, after the one before it has ended; wait for it unless `asynchronous`.

        Args:
            state: what `state.json` will hold; taken as it is now.

        Raises:
            UserError: the disk refuses this checkpoint or the one before; those before that are whole.
            PhaseTimeoutError: one of them took longer than `checkpoint.timeout_s`.
        """
        self.wait()
        self._state = json.dumps(state, indent=2) + "\n"
        self._staged = self._checkpoints.stage(step)
        self._step, self._began = step, self._clock()
        with self._discarding():
            self._learner.save_in_background(str(self._staged.resolve()), copy=self._config.asynchronous)
        if not self._config.asynchronous:
            self.wait()

    def poll(self) -> bool:
        """Go on with what is being written, without waiting; True when there is nothing (more).

        Raises:
            UserError, PhaseTimeoutError: see `save`.
        """
        if self._step is None:
            return True
        with self._discarding():
            if self._commit is None and self._learner.saved():
                self._commit = self._thread.submit(self._finish, self._step, self._state)
            if self._commit is not None and self._commit.done():
                self._commit.result()
                self._step = self._commit = None
                return True
            seconds = self._clock() - self._began
            if seconds > self._config.timeout_s:
                raise PhaseTimeoutError(f"checkpoint of step {self._step}", self._config.timeout_s)
        return False

    def wait(self) -> None:
        """Wait until what is being written counts.

        Raises:
            UserError, PhaseTimeoutError: see `save`.
        """
        while not self.poll():
            time.sleep(_POLL_S)

    def abandon(self) -> None:
        """The learner is gone. What it has written whole still gets its digests and counts; the rest is removed.

        Raises:
            UserError: the disk refuses.
        """
        if self._commit is not None:
            with self._discarding():
                self._commit.result()
        elif self._step is not None:
            self._checkpoints.discard(self._step)
        self._step = self._commit = None

    def _finish(self, step: int, state: str) -> None:
        """Digests of a large checkpoint take a while, so this has a thread of its own."""
        durable.replace(self._staged / STATE_FILE, state)
        self._checkpoints.commit(step)
        self._checkpoints.prune(self._config.keep, self._config.keep_best)

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        """Remove the half-written checkpoint when the disk refuses the rest of it: the space is needed."""
        try:
            yield
        except UserError as error:
            step, self._step, self._commit = self._step, None, None
            try:
                if step is not None:
                    self._checkpoints.discard(step)
            except UserError as second:
                error.add_note(str(second))
            raise
