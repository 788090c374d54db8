"""Base class of runs: evaluation of the test split before and after training, checkpoints, time, summary."""

from __future__ import annotations

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError

from cluster.config import RunConfig
from cluster.evaluation.comparison import can_be_restricted, on_common_utterances
from cluster.evaluation.result import Evaluation, load_evaluation, store_evaluation
from cluster.evaluation.scores import Scores
from cluster.evaluation.tables import Example, print_run
from cluster.monitoring.memory import PeakMemory
from cluster.monitoring.phases import PhaseTimer
from cluster.monitoring.progress import TrainingDisplay
from cluster.preflight import surrounding_cluster
from cluster.runs.checkpoints import STATE_FILE
from cluster.runs.folder import RunFolder
from cluster.runs.job_state import JobState, announce
from cluster.runs.saver import CheckpointSaver, StateWriter
from cluster.training.metrics import summarise
from learner.gang import LearnerLostError
from speech.errors import UserError, first_of
from speech.manifests import Manifest

logger = logging.getLogger(__name__)

UNFIT_SHOWN = 5
"""Utterances that a run names at its start; its ledger names all."""


def compared(config: RunConfig, manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """The manifests that must be the same when a run is resumed: without `before`, the test split may change."""
    return {split: m for split, m in manifests.items() if split != "test" or config.evaluation.before}


class Run(ABC):
    """One execution of `speechrl train`, with everything that its parts need."""

    def __init__(
        self,
        config: RunConfig,
        manifests: Mapping[str, Manifest],
        folder: RunFolder,
        display: TrainingDisplay,
        memory: PeakMemory,
        learner: StateWriter,
    ) -> None:
        self.config, self.manifests = config, manifests
        self.folder, self.display, self.memory = folder, display, memory
        self.timer = PhaseTimer(on_phase=display.phase)
        self.saver = CheckpointSaver(folder.checkpoints, learner, config.checkpoint)
        self.interrupted: list[bool] = []
        self.before: Evaluation[Scores] | None = None
        self.after: Evaluation[Scores] | None = None
        # What earlier executions of this run took counts too.
        self.seconds_before, self.peak_before = 0.0, 0
        self.started = time.monotonic()
        for text in folder.damaged:
            logger.warning("%s; an older checkpoint is used", text)
        for text in folder.changed:
            display.message(f"resumed with {text}")
        for split, manifest in manifests.items():
            if manifest.skipped:
                display.message(f"{split}: skipped {len(manifest.skipped)} bad lines of {manifest.path}")
            if manifest.unchecked:
                unread = f"the headers of {manifest.unchecked:,} audio files are read when they are needed"
                display.message(f"{split}: {unread}; `speechrl prepare {manifest.path}` reads them all at once")

    def tell_unfit(self, unfit: Mapping[str, str]) -> None:
        """Show which utterances of the training split will be rejected: reason by id."""
        if unfit:
            first = first_of((f"{name} ({reason})" for name, reason in unfit.items()), UNFIT_SHOWN)
            self.display.message(f"train: {len(unfit):,} utterances cannot be used and are rejected: {first}")

    @property
    @abstractmethod
    def step(self) -> int:
        """The last step that was trained; 0 before the first."""

    @abstractmethod
    def evaluate_test(self, when: str) -> Evaluation[Scores]:
        """Evaluate the test split with the weights of now."""

    @abstractmethod
    def scores_kind(self) -> type[Scores]:
        """What the scores of this run's evaluations are."""

    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """What must be the same for an evaluation of an earlier execution to count."""

    def summary(self, status: str, rejected: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """What `summary.json` holds."""
        before, after = self._scores()
        return summarise(
            status=status,
            metrics=self.folder.read_metrics(),
            seconds=self.seconds_before,
            before=before,
            after=after,
            peak_bytes=max(self.peak_before, self.memory.peak_bytes),
            skipped={split: len(manifest.skipped) for split, manifest in self.manifests.items()},
            rejected=rejected,
        )

    def print_result(self, status: str) -> None:
        """Print the scores before and after, and some transcripts."""
        print_run(*self._scores(), self.examples(), status, self.step, self.seconds_before, self.folder.path)

    def _scores(self) -> tuple[Scores | None, Scores | None]:
        """Of the test split before and after training."""
        return (
            None if self.before is None else self.before.scores,
            None if self.after is None else self.after.scores,
        )

    def examples(self) -> list[Example]:
        """Some transcripts of the test split, before beside after; utterances that changed come first."""
        before = self.before.by_id() if self.before is not None else {}
        after = self.after.by_id() if self.after is not None else {}
        if "test" not in self.manifests or not (before or after):
            return []
        utterances = [u for u in self.manifests["test"].utterances if u.id in before or u.id in after]
        utterances.sort(key=lambda u: before.get(u.id) == after.get(u.id))
        return [
            Example(u.text, before.get(u.id), after.get(u.id))
            for u in utterances[: self.config.evaluation.samples_shown]
        ]

    def evaluate_before(self) -> None:
        """Evaluate the test split before the first step, or read what an earlier execution found then."""
        if not (self.config.evaluation.before and "test" in self.manifests):
            return
        self.display.phase("evaluating the test split before training")
        path = self.folder.path / "evaluation-before.json"
        self.before = load_evaluation(path, self.conditions(), self.scores_kind())
        if self.before is None and self.step > 0:
            self.display.message("the test split was not evaluated like this before the first step; `before` is empty")
        elif self.before is None:
            self.before = self.evaluate_test("before")
            store_evaluation(path, self.before, self.conditions())
            self.folder.table("evaluation/before", *self.before.table(), self.step)

    def finish(self) -> str:
        """What comes after the last step: export and evaluation, unless the user stopped the run; its summary.

        Returns:
            The run's status.
        """
        status = "interrupted" if self.interrupted and self.step < self.config.steps else "completed"
        self.seconds_before += time.monotonic() - self.started
        if surrounding_cluster() is not None:
            announce(JobState(self.step, self.folder.checkpoints.latest()))
        if status == "interrupted":
            self.display.message(f"stopped after step {self.step}; a checkpoint of it is saved")
        else:
            # For `evaluate`, transformers or another run.
            self.folder.checkpoints.export(self.folder.path / "export")
            if self.config.evaluation.after and "test" in self.manifests:
                self.display.phase("evaluating the test split after training")
                self.after = self.evaluate_test("after")
                store_evaluation(self.folder.path / "evaluation-after.json", self.after, self.conditions())
                self.folder.table("evaluation/after", *self.after.table(), self.step)
                self._compare_like_with_like()
        self.memory.sample()
        rejected = self.folder.ledger.bad_utterances()
        if rejected:
            first = first_of((prompt for prompt, _ in rejected), UNFIT_SHOWN)
            self.display.message(
                f"{len(rejected):,} prompts were rejected for their utterances: {first}; see ledger.jsonl"
            )
        self.folder.summary(self.summary(status, rejected))
        return status

    def _compare_like_with_like(self) -> None:
        """Leave out of both evaluations what the other could not evaluate."""
        if self.before is None or self.after is None:
            return
        names = [{item.id for item in evaluation.bad} for evaluation in (self.before, self.after)]
        if not any(names):
            return
        before, after = (", ".join(sorted(some)[:UNFIT_SHOWN]) or "none" for some in names)
        self.display.message(f"test: not evaluated before training: {before}; after it: {after}")
        if can_be_restricted(self.scores_kind()):
            self.before, self.after = on_common_utterances(self.before, self.after)
        elif names[0] != names[1]:
            self.display.message("test: the scores before and after are not of the same utterances")

    def validates(self) -> bool:
        """Whether the present step ends with an evaluation of `data.valid`."""
        every = self.config.evaluation.every
        return bool(every) and "valid" in self.manifests and self.step % every == 0

    def saves(self) -> bool:
        """Whether the present step ends with a checkpoint."""
        last = self.step == self.config.steps
        return last or bool(self.interrupted) or self.step % self.config.checkpoint.every == 0

    def save_last(self, save: Callable[[], None]) -> None:
        """Ensure that the last step has a whole checkpoint, whatever ended the training."""
        self.saver.wait()
        if self.folder.checkpoints.latest() != self.step and self.step > 0:
            save()
            self.saver.wait()

    def clocks(self) -> dict[str, Any]:
        """What a checkpoint says about time and memory so far."""
        return {
            "seconds": self.seconds_before + time.monotonic() - self.started,
            "peak_memory_bytes": max(self.peak_before, self.memory.peak_bytes),
        }

    def finish_checkpoint(self, error: Exception) -> None:
        """Wait for the checkpoint in progress before the run fails: it spares the resumed run some steps."""
        try:
            self.saver.wait()
        except (UserError, TimeoutError, RayError, LearnerLostError) as second:
            error.add_note(f"the checkpoint that was being written is lost too: {second}")

    def read_state(self, step: int, load_state_dict: Callable[[Mapping[str, Any]], None]) -> None:
        """Give the state of a step's checkpoint to `load_state_dict`, and take its clocks.

        Raises:
            UserError: the state is no state of such a run.
        """
        file = self.folder.checkpoints.folder(step) / STATE_FILE
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            load_state_dict(state)
            self.seconds_before, self.peak_before = float(state["seconds"]), int(state["peak_memory_bytes"])
        except (json.JSONDecodeError, LookupError, TypeError, ValueError) as error:
            message = f"{file}: damaged ({error}); remove {file.parent} to resume earlier"
            raise UserError(message) from error
