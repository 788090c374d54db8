"""`objective: token2text`: trains the reward model of DiffRO; folder, resume and interruption are as for a policy.

No engine and no reward: recordings → codec tokens → one optimiser update a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import jsonl
from cluster.checkpoints import STATE_FILE
from cluster.config import RunConfig
from cluster.data import LedgerEntry, PromptSource
from cluster.display import Example, TrainingDisplay, print_summary
from cluster.evaluate import CHUNK, Evaluation, load_evaluation, store_evaluation
from cluster.head_watch import HeadWatch
from cluster.interruption import interruption
from cluster.memory import PeakMemory
from cluster.phases import PhaseTimer
from cluster.record import summarise
from cluster.runfolder import RunFolder
from cluster.token2text_data import check_manifest, check_recordings, new_model, targets_of
from cluster.token2text_evaluation import describe, score_readings, scores
from cluster.token2text_system import Token2TextSystem
from cluster.train import load_manifests
from learner.token2text import Token2TextConfig
from learner.token2text_plan import SpeechText
from speech.errors import UserError
from speech.manifests import Manifest
from speech.records import Utterance

NEW = "new"
"""Value of `model.path` that makes a model rather than reading one."""


def train_token2text(config: RunConfig) -> int:
    """Run, or resume, the training of a reward model; returns the exit code.

    Raises:
        UserError: bad input or configuration; nothing has been trained then.
    """
    manifests = load_manifests(config)
    start = None if config.model.path == NEW else str(Path(config.model.path).resolve())
    # Only the actor that loads the codec knows its size, and bad texts should not have to wait for that.
    model = new_model(config.token2text, 1, manifests["train"]) if start is None else Token2TextConfig.load(start)
    for manifest in manifests.values():
        check_recordings(manifest)
        check_manifest(model, manifest)
    with RunFolder(config.runs_dir, config.name) as folder, PeakMemory() as memory:
        resume_from = folder.open(config)
        folder.rewind(resume_from or 0)
        with TrainingDisplay(config.name, config.steps) as display:
            display.phase("starting Ray, codec and learner")
            with Token2TextSystem(config) as system, HeadWatch():
                if start is None:
                    model = replace(model, speech_vocabulary=system.codec_size)
                system.start_learner(start or model)
                run = _Run(config, system, model, manifests, folder, display, memory)
                status = run.execute(resume_from)
        print_summary(run.summary(status), run.examples(), folder.path)
    return 130 if status == "interrupted" else 0


class _Run:
    """One execution, with everything that its parts need."""

    def __init__(
        self,
        config: RunConfig,
        system: Token2TextSystem,
        model: Token2TextConfig,
        manifests: Mapping[str, Manifest],
        folder: RunFolder,
        display: TrainingDisplay,
        memory: PeakMemory,
    ) -> None:
        self.config, self.system, self.model, self.manifests = config, system, model, manifests
        self.folder, self.display, self.memory = folder, display, memory
        self.timer = PhaseTimer(on_phase=display.phase)
        self.source = PromptSource(
            manifests["train"].utterances, config.seed, config.data.batch_prompts, config.data.shuffle
        )
        self.step = 0
        self.interrupted: list[bool] = []
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None
        # What earlier executions of this run took counts too.
        self.seconds_before, self.peak_before = 0.0, 0
        self.started = time.monotonic()
        for split, manifest in manifests.items():
            if manifest.skipped:
                display.message(f"{split}: skipped {len(manifest.skipped)} bad lines of {manifest.path}")

    def execute(self, resume_from: int | None) -> str:
        """Train to the end, or until the user stops; returns the run's status."""
        if resume_from is not None:
            self._restore(resume_from)
        if self.config.evaluation.before and "test" in self.manifests:
            self.before = self._evaluate_once("before")
        self.started = time.monotonic()
        with interruption(self.display) as self.interrupted:
            while self.step < self.config.steps and not self.interrupted:
                self._train_step()
        status = "completed" if self.step == self.config.steps else "interrupted"
        if self.folder.checkpoints.latest() != self.step and self.step > 0:
            self._save()
        self.seconds_before += time.monotonic() - self.started
        if status == "completed":
            self.folder.checkpoints.export(self.folder.path / "export")
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
        """Some readings of the test split, before beside after."""
        before = self.before.by_id() if self.before is not None else {}
        after = self.after.by_id() if self.after is not None else {}
        utterances = self.manifests["test"].utterances if "test" in self.manifests and (before or after) else ()
        shown = self.config.evaluation.samples_shown
        return [Example(u.text, before.get(u.id), after.get(u.id)) for u in utterances[:shown]]

    def _train_step(self) -> None:
        """One update, recorded, evaluated and saved when due."""
        self.step += 1
        self.timer.start_step(self.step)
        prompts, encoded = self.source.next_batch(), self.system.encoded_total()
        with self.timer.phase("encode", self.config.engines.generate_timeout_s) as phase:
            items = self._items([prompt.utterance for prompt in prompts], phase.remaining())
        with self.timer.phase("learn", self.config.learner.step_timeout_s):
            metrics = self.system.learner.update(self.step, items)
        tokens = sum(len(item.tokens) for item in items)
        metrics["rollout/encoded_utterances"] = float(self.system.encoded_total() - encoded)
        metrics["rollout/audio_seconds"] = sum(prompt.utterance.duration or 0.0 for prompt in prompts)
        every = self.config.evaluation.every
        if every and "valid" in self.manifests and self.step % every == 0:
            with self.timer.phase("evaluate"):
                result = self._evaluate("valid")
            metrics |= {f"valid/{name}": value for name, value in scores(result.summary).items()}
            self.display.message(f"step {self.step}: valid {describe(result.summary)}")
        metrics |= self.timer.finish_step()
        metrics["time/tokens_per_second"] = tokens / max(metrics["time/step"], 1e-9)
        self.folder.ledger.append(self.step, [LedgerEntry(prompt.id, "trained") for prompt in prompts])
        self.folder.metrics(self.step, metrics)
        self.display.update(self.step, metrics)
        last = self.step == self.config.steps
        if last or self.interrupted or self.step % self.config.checkpoint.every == 0:
            self._save()

    def _items(self, utterances: Sequence[Utterance], timeout: float | None) -> list[SpeechText]:
        targets = [targets_of(self.model, utterance) for utterance in utterances]
        return [
            SpeechText(tokens, target.text_ids, target.attributes)
            for tokens, target in zip(self.system.tokenise(utterances, timeout), targets, strict=True)
        ]

    def _evaluate(self, split: str) -> Evaluation:
        utterances = self.manifests[split].utterances
        items, readings = [], []
        for start in range(0, len(utterances), CHUNK):
            part = self._items(utterances[start : start + CHUNK], self.config.engines.generate_timeout_s)
            items += part
            readings += self.system.learner.read(part)
        return score_readings(self.model, utterances, items, readings)

    def _evaluate_once(self, when: str) -> Evaluation | None:
        """Evaluate the test split before or after training, or read what an earlier execution found."""
        self.display.phase(f"evaluating the test split {when} training")
        path = self.folder.path / f"evaluation-{when}.json"
        test = self.manifests["test"]
        conditions = {"model": self.config.model.path, "manifest": test.path, "utterances": len(test.utterances)}
        result = load_evaluation(path, conditions) if when == "before" else None
        if result is None:
            if when == "before" and self.step > 0:
                self.display.message("the test split was not evaluated before the first step, and cannot be any more")
                return None
            result = self._evaluate("test")
            store_evaluation(path, result, conditions)
        self.display.message(f"test {when} training: {describe(result.summary)}")
        return result

    def _save(self) -> None:
        """Write a checkpoint: learner shards, the model itself, data position. It counts once it is renamed."""
        checkpoints = self.folder.checkpoints
        with self.timer.phase("checkpoint"):
            staged = checkpoints.stage(self.step)
            self.system.learner.save(str(staged.resolve()))
            state = {
                "step": self.step,
                "source": self.source.state(),
                "seconds": self.seconds_before + time.monotonic() - self.started,
                "peak_memory_bytes": max(self.peak_before, self.memory.peak_bytes),
            }
            jsonl.replace(staged / STATE_FILE, json.dumps(state, indent=2) + "\n")
            checkpoints.commit(self.step)
            checkpoints.prune(self.config.checkpoint.keep)

    def _restore(self, step: int) -> None:
        folder = self.folder.checkpoints.folder(step)
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            self.source.restore(state["source"])
            self.step = int(state["step"])
            self.seconds_before, self.peak_before = float(state["seconds"]), int(state["peak_memory_bytes"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{folder / STATE_FILE}: damaged ({error}); remove {folder} to resume earlier") from error
        self.system.learner.load(str(folder.resolve()))
        self.display.start_at(step)
        self.display.message(f"resuming from the checkpoint of step {step}")
