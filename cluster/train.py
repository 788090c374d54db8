"""`speechrl train`: what surrounds the loop — resume, evaluation, records, checkpoints, interruption, summary."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cluster import jsonl
from cluster.checkpoints import STATE_FILE
from cluster.config import RunConfig
from cluster.data import PromptSource, derived_seed, load_split
from cluster.display import Example, TrainingDisplay, print_summary
from cluster.evaluate import Evaluation, evaluate, evaluation_sampling, load_evaluation, store_evaluation
from cluster.evaluate_speech import evaluate_speech
from cluster.loop import Trainer
from cluster.memory import PeakMemory
from cluster.phases import PhaseTimer
from cluster.record import aligned_gaps, sample_text, step_metrics, summarise
from cluster.runfolder import RunFolder
from cluster.step import Step
from cluster.system import System, run_family
from cluster.timeline import Timeline, idle_fractions
from rollout.config import SamplingConfig
from speech.audio import load_audio
from speech.errors import UserError
from speech.families import ModelFamily
from speech.manifests import Manifest

VALIDATED = ("wer", "cer", "wer_second", "speaker_similarity", "duration_mean", "no_stop_rate")
"""What of an evaluation of `data.valid` goes into the metrics."""


def train(config: RunConfig) -> int:
    """Run, or resume, a training run; returns the exit code.

    Raises:
        UserError: bad input or configuration; nothing has been trained then.
    """
    manifests = {
        split: load_split(config.data, path)
        for split, path in (
            ("train", config.data.train),
            ("valid", config.data.valid if config.evaluation.every else None),
            ("test", config.data.test),
            ("replay", config.data.replay),
        )
        if path is not None
    }
    run_family(config)  # an incomplete model must not leave a run's folder behind
    with RunFolder(config.runs_dir, config.name) as folder, PeakMemory() as memory:
        resume_from = folder.open(config)
        folder.rewind(resume_from or 0)
        with TrainingDisplay(config.name, config.steps) as display:
            display.phase("starting Ray, engines and learner")
            with System(config) as system:
                run = _Run(config, system, manifests, folder, display, memory)
                status = run.execute(resume_from)
        print_summary(run.summary(status), run.examples(), folder.path)
    return 130 if status == "interrupted" else 0


@contextmanager
def interruption(display: TrainingDisplay) -> Iterator[list[bool]]:
    """Ctrl-C (or SIGTERM) lets the running step end, so that it can be saved; the second one stops at once.

    Yields:
        A list that is non-empty once the user has asked to stop.
    """
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        display.message("stopping after this step; a checkpoint will be saved (Ctrl-C again: stop at once)")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Run:
    """One execution of `train`, with everything that its parts need."""

    def __init__(
        self,
        config: RunConfig,
        system: System,
        manifests: Mapping[str, Manifest],
        folder: RunFolder,
        display: TrainingDisplay,
        memory: PeakMemory,
    ) -> None:
        self.config, self.system, self.manifests = config, system, manifests
        self.folder, self.display, self.memory = folder, display, memory
        self.interrupted: list[bool] = []
        self.timer = PhaseTimer(on_phase=display.phase)
        self.timeline = Timeline(folder.path / "timeline.json")
        source = PromptSource(
            manifests["train"].utterances, config.seed, config.data.batch_prompts, config.data.shuffle
        )
        replay = None
        if "replay" in manifests:
            seed = derived_seed("replay", config.seed)
            replay = PromptSource(manifests["replay"].utterances, seed, config.data.replay_batch)
        self.trainer = Trainer(config, system, source, replay, self.timer)
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None
        self.engine_stats = system.fleet.stats()
        self.encoded = 0
        # What earlier executions of this run took counts too.
        self.seconds_before = 0.0
        self.peak_before = 0
        self.started = time.monotonic()
        for split, manifest in manifests.items():
            if manifest.skipped:
                display.message(f"{split}: skipped {len(manifest.skipped)} bad lines of {manifest.path}")

    def execute(self, resume_from: int | None) -> str:
        """Train to the end, or until the user stops; returns the run's status."""
        if resume_from is not None:
            self._restore(resume_from)
        self.trainer.publish(self.trainer.version)
        if self.config.evaluation.before and "test" in self.manifests:
            self.before = self._evaluate_once("before")
        self.encoded = self.system.encoders.encoded_total()
        self.started = time.monotonic()
        with interruption(self.display) as self.interrupted:
            self.trainer.run(self._after_step)
        status = "interrupted" if self.interrupted and self.trainer.step < self.config.steps else "completed"
        if self.folder.checkpoints.latest() != self.trainer.step and self.trainer.step > 0:
            self._save()
        self.seconds_before += time.monotonic() - self.started
        if status == "completed":
            self._export()
            if self.config.evaluation.after and "test" in self.manifests:
                self.after = self._evaluate_once("after")
        self.memory.sample()
        self.folder.summary(self.summary(status))
        return status

    def summary(self, status: str) -> dict[str, Any]:
        """What `summary.json` holds."""
        return summarise(
            status=status,
            metrics=self.folder.read_metrics(),
            seconds=self.seconds_before,
            before=None if self.before is None else self.before.summary,
            after=None if self.after is None else self.after.summary,
            peak_bytes=max(self.peak_before, self.memory.peak_bytes),
            skipped={split: len(manifest.skipped) for split, manifest in self.manifests.items()},
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

    def _after_step(self, step: Step) -> bool:
        """Record, evaluate, save; False ends the training."""
        stats = self.system.fleet.stats()
        encoded = self.system.encoders.encoded_total()
        retried = self.system.rewards.counts.retried if step.batch.groups else 0
        metrics = step_metrics(step, self.engine_stats, stats, encoded - self.encoded, retried)
        self.engine_stats, self.encoded = stats, encoded
        checkpoint = self.config.checkpoint
        last = step.number == self.config.steps
        if (
            self.config.evaluation.every
            and "valid" in self.manifests
            and step.number % self.config.evaluation.every == 0
        ):
            metrics |= self._validate()
            # The evaluation's share is no part of the next step's.
            self.engine_stats, self.encoded = self.system.fleet.stats(), self.system.encoders.encoded_total()
        metrics |= self.timer.finish_step() | self._timeline(step)
        if "time/switch" in metrics:
            metrics["time/switch_share"] = (metrics["time/switch"] + metrics.get("time/wake", 0.0)) / metrics[
                "time/step"
            ]
        metrics["time/tokens_per_second"] = metrics.get("rollout/tokens", 0.0) / max(metrics["time/step"], 1e-9)
        if step.batch.groups:
            self.folder.rollouts(step.number, step.batch.groups, aligned_gaps(step.batch, step.sample_gaps))
        self.folder.ledger.append(step.number, step.ledger)
        self.folder.metrics(step.number, metrics)
        self.display.update(step.number, metrics)
        if last or self.interrupted or step.number % checkpoint.every == 0:
            self._save(step)
        return not self.interrupted

    def _timeline(self, step: Step) -> dict[str, float]:
        """Add the step to the timeline; the components' idle fractions in it."""
        now, spans = time.time(), self.system.spans()
        self.timeline.append(step.number, {"controller": self.timer.spans.take(), **spans})
        return idle_fractions(spans, self.timer.step_started, now)

    def _validate(self) -> dict[str, float]:
        with self.timer.phase("evaluate"):
            if self.config.objective == "sft":
                self.trainer.publish(self.trainer.version + 1)
            result = self._evaluate("valid")
        scores = {name: value for name, value in result.summary.items() if name in VALIDATED and value is not None}
        if "wer" in scores:
            self.display.message(f"step {self.trainer.step}: valid WER {scores['wer']:.2%}")
        return {f"valid/{name}": value for name, value in scores.items()}

    def _evaluate(self, split: str, waves: Path | None = None) -> Evaluation:
        system, utterances = self.system, self.manifests[split].utterances
        if system.listener is None:
            return evaluate(utterances, system.encoders, system.fleet, self._greedy)
        return evaluate_speech(utterances, system.encoders, system.fleet, system.listener, self._greedy, waves)

    @property
    def _greedy(self) -> SamplingConfig:
        return evaluation_sampling(self.config)

    def _evaluate_once(self, when: str) -> Evaluation:
        """Evaluate the test split before or after training, or read what an earlier execution found."""
        self.display.phase(f"evaluating the test split {when} training")
        path = self.folder.path / f"evaluation-{when}.json"
        conditions = {
            "model": str(Path(self.config.model.path).resolve()),
            "manifest": self.manifests["test"].path,
            "utterances": len(self.manifests["test"].utterances),
            "max_new_tokens": self._greedy.max_new_tokens,
        }
        found = load_evaluation(path, conditions) if when == "before" else None
        if found is not None:
            return found
        if when == "after" and self.config.objective == "sft":
            self.trainer.publish(self.trainer.version + 1)
        result = self._evaluate("test", waves=self.folder.path / "audio" / when)
        store_evaluation(path, result, conditions)
        return result

    def _save(self, step: Step | None = None) -> None:
        """Write a checkpoint: learner shards, export, data position, version. It counts once it is renamed."""
        trainer, checkpoints = self.trainer, self.folder.checkpoints
        with self.timer.phase("checkpoint"):
            staged = checkpoints.stage(trainer.step)
            trainer.save(str(staged.resolve()))
            state = {
                "step": trainer.step,
                "version": trainer.version,
                "source": trainer.source.state(),
                "replay": None if trainer.replay_source is None else trainer.replay_source.state(),
                "in_flight": [[[p.epoch, p.position] for p in prompts] for prompts in trainer.in_flight()],
                "lengths": trainer.history.state_dict(),
                "seconds": self.seconds_before + time.monotonic() - self.started,
                "peak_memory_bytes": max(self.peak_before, self.memory.peak_bytes),
            }
            jsonl.replace(staged / STATE_FILE, json.dumps(state, indent=2) + "\n")
            checkpoints.commit(trainer.step)
            checkpoints.prune(self.config.checkpoint.keep)
        if step is not None and step.batch.groups:
            self._show_sample(step)

    def _export(self) -> None:
        """`export/`: the trained model, for `evaluate`, transformers or another run."""
        latest = self.folder.checkpoints.latest()
        if latest is None:
            return
        final = self.folder.path / "export"
        staged, old = final.with_name("export.tmp"), final.with_name("export.old")
        with jsonl.writing(final):
            for folder in (staged, old):
                if folder.exists():
                    shutil.rmtree(folder)
            shutil.copytree(self.folder.checkpoints.folder(latest) / "hf", staged)
            if final.exists():
                final.rename(old)
            staged.rename(final)
            if old.exists():
                shutil.rmtree(old)

    def _show_sample(self, step: Step) -> None:
        """One prompt with its samples to TensorBoard, sound included."""
        group = step.batch.groups[0]
        self.folder.text("samples", sample_text(group), step.number)
        family = self.system.family
        if isinstance(family, ModelFamily):
            wave = load_audio(group.prompt.utterance, family.sample_rate)
            self.folder.audio("samples", wave, family.sample_rate, step.number)

    def _restore(self, step: int) -> None:
        folder = self.folder.checkpoints.folder(step)
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            self.trainer.source.restore(state["source"])
            # Checkpoints of earlier releases have none.
            self.trainer.waiting.extend(self.trainer.source.at(places) for places in state.get("in_flight", []))
            if self.trainer.replay_source is not None:
                self.trainer.replay_source.restore(state["replay"])
            self.trainer.history.load_state_dict(state["lengths"])
            self.trainer.step, self.trainer.version = int(state["step"]), int(state["version"])
            self.seconds_before, self.peak_before = float(state["seconds"]), int(state["peak_memory_bytes"])
        except (json.JSONDecodeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{folder / STATE_FILE}: damaged ({error}); remove {folder} to resume earlier") from error
        self.trainer.learner_turn()
        self.trainer.learner.load(str(folder.resolve()))
        self.display.start_at(step)
        self.display.message(f"resuming from the checkpoint of step {step}")
