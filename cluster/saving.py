"""Writing checkpoints beside the training: one at a time, in order, each counting only once it is whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from cluster import jsonl
from cluster.checkpoints import STATE_FILE, CheckpointFolder
from cluster.config import CheckpointConfig
from speech.errors import UserError

_POLL_S = 0.02


class StateWriter(Protocol):
    """The learner, as far as checkpoints go."""

    def save_in_background(self, folder: str) -> None:
        """Copy the state and begin to write it below a folder."""

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
        self._began = 0.0
        self._commit: Future[None] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin the checkpoint of a step, after the one before it has ended; wait for it unless `asynchronous`.

        Args:
            state: what `state.json` will hold; taken as it is now.

        Raises:
            UserError: the disk refuses this checkpoint or the one before; those before that are whole.
            TimeoutError: one of them took longer than `checkpoint.timeout_s`.
        """
        self.wait()
        self._state = json.dumps(state, indent=2) + "\n"
        staged = self._checkpoints.stage(step)
        self._step, self._began = step, self._clock()
        with self._discarding():
            self._learner.save_in_background(str(staged.resolve()))
        if not self._config.asynchronous:
            self.wait()

    def poll(self) -> bool:
        """Go on with what is being written, without waiting; True when there is nothing (more).

        Raises:
            UserError, TimeoutError: see `save`.
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
                raise TimeoutError(f"the checkpoint of step {self._step} was not written within {seconds:.0f} s")
        return False

    def wait(self) -> None:
        """Wait until what is being written counts.

        Raises:
            UserError, TimeoutError: see `save`.
        """
        while not self.poll():
            time.sleep(_POLL_S)

    def _finish(self, step: int, state: str) -> None:
        """Digests of a large checkpoint take a while, so this has a thread of its own."""
        jsonl.replace(self._checkpoints.folder(step).with_suffix(".tmp") / STATE_FILE, state)
        self._checkpoints.commit(step)
        self._checkpoints.prune(self._config.keep, self._config.keep_best)

    def _discarding(self) -> _Discard:
        return _Discard(self)

    def abandon(self) -> None:
        """Give up the checkpoint being written and remove what there is of it, as far as the disk lets us."""
        step, self._step, self._commit = self._step, None, None
        if step is not None:
            self._checkpoints.discard(step)


class _Discard:
    """Removes the half-written checkpoint when the disk refuses the rest: that space is needed."""

    def __init__(self, saver: CheckpointSaver) -> None:
        self._saver = saver

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            try:
                self._saver.abandon()
            except UserError as second:
                error.add_note(str(second))
