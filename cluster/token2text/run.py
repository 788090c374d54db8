"""`objective: token2text`: trains the reward model of DiffRO; folder, resume and interruption are as for a policy.

No engine and no reward: recordings → codec tokens → one optimiser update a step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.data.fitness import RECORDING_CHECK, target_check, without_unfit
from cluster.data.intake import Intake, PromptBatch
from cluster.data.prompts import PromptSource
from cluster.data.rejections import Rejections
from cluster.data.targets import new_model, targets_of
from cluster.evaluation.result import CHUNK, FINGERPRINT, Evaluation
from cluster.evaluation.sampling import bad_input
from cluster.monitoring.head_watch import HeadWatch
from cluster.monitoring.memory import PeakMemory
from cluster.monitoring.progress import TrainingDisplay
from cluster.runs.checkpoints import SCORE
from cluster.runs.folder import RunFolder
from cluster.runs.ledger import LedgerEntry
from cluster.runs.snapshot import check_data
from cluster.token2text.evaluation import Token2TextScores, score_predictions
from cluster.token2text.system import Token2TextSystem
from cluster.training.interruption import interruption
from cluster.training.run import Run, compared
from learner.token2text.model import Token2TextConfig
from learner.token2text.plan import SpeechText
from speech.manifests import Manifest
from speech.records import BadUtterance, Prompt, Utterance
from speech.text import NORMALISER_VERSION

NEW = "new"
"""Value of `model.path` that makes a model rather than reading one."""


def train_token2text(config: RunConfig, manifests: Mapping[str, Manifest]) -> str:
    """Run, or resume, a training run; returns its status, `completed` or `interrupted`.

    Raises:
        UserError: bad input or configuration; nothing has been trained then.
    """
    start, model, manifests, unfit = usable_manifests(config, manifests)
    with RunFolder(config.runs_dir, config.name) as folder, PeakMemory() as memory:
        resume_from = folder.open(config)
        check_data(folder.path, compared(config, manifests), resume_from is not None)
        folder.rewind(resume_from or 0)
        with TrainingDisplay(config.name, config.steps) as display:
            display.phase("starting Ray, codec and learner")
            with Token2TextSystem(config) as system, HeadWatch():
                if start is None:
                    model = replace(model, speech_vocabulary=system.codec_size)
                system.start_learner(start or model)
                run = Token2TextRun(config, system, model, manifests, folder, display, memory, unfit)
                status = run.execute(resume_from)
        run.print_result(status)
    return status


def usable_manifests(
    config: RunConfig, manifests: Mapping[str, Manifest]
) -> tuple[str | None, Token2TextConfig, dict[str, Manifest], dict[str, str]]:
    """The folder of the model to start from (None for a new one), the model's form, and see `without_unfit`."""
    start = None if config.model.path == NEW else str(Path(config.model.path).resolve())
    # Only the actor that loads the codec knows its size, and bad texts should not have to wait for that.
    model = new_model(config.token2text, 1, manifests["train"]) if start is None else Token2TextConfig.load(start)
    checks = [RECORDING_CHECK, target_check(model)]
    usable, unfit = without_unfit(config, manifests, dict.fromkeys(manifests, checks))
    return start, model, usable, unfit


class Token2TextRun(Run):
    """The training of a reward model."""

    def __init__(
        self,
        config: RunConfig,
        system: Token2TextSystem,
        model: Token2TextConfig,
        manifests: Mapping[str, Manifest],
        folder: RunFolder,
        display: TrainingDisplay,
        memory: PeakMemory,
        unfit: Mapping[str, str],
    ) -> None:
        """`unfit`: see `Rejections`."""
        super().__init__(config, manifests, folder, display, memory, system.learner)
        self.system, self.model = system, model
        self.source = PromptSource(manifests["train"].utterances, config.seed, config.data.shuffle)
        self.trained = 0
        self.rejections = Rejections(config.data, unfit)
        self.tell_unfit(unfit)
        self.intake = Intake(self.source, self._encode, lambda prompt, item: None, self.rejections)

    @property
    def step(self) -> int:
        return self.trained

    def execute(self, resume_from: int | None) -> str:
        """Train to the end, or until the user stops; returns the run's status."""
        if resume_from is not None:
            self._restore(resume_from)
        self.evaluate_before()
        self.started = time.monotonic()
        with interruption(self.display) as self.interrupted:
            try:
                while self.step < self.config.steps and not self.interrupted:
                    self._train_step()
                self.save_last(self._save)
            except Exception as error:
                self.finish_checkpoint(error)
                raise
        return self.finish()

    def _train_step(self) -> None:
        """One update, recorded, evaluated and saved when due."""
        self.saver.poll()
        self.trained += 1
        self.timer.start_step(self.step)
        batch, encoded = PromptBatch[SpeechText](self.config.data.batch_prompts), self.system.codecs.encoded_total()
        self.intake.fill(batch)
        items = batch.audio
        with self.timer.phase("learn", self.config.learner.step_timeout_s):
            metrics = self.system.learner.update(self.step, items)
        tokens = sum(len(item.tokens) for item in items)
        metrics["rollout/encoded_utterances"] = float(self.system.codecs.encoded_total() - encoded)
        metrics["rollout/audio_seconds"] = sum(prompt.utterance.duration or 0.0 for prompt in batch.prompts)
        metrics["data/rejected"] = float(len(batch.rejected))
        score = None
        if self.validates():
            with self.timer.phase("evaluate"):
                result = self._evaluate("valid")
            found = result.scores.metrics()
            metrics |= {f"valid/{name}": value for name, value in found.items()}
            score = result.scores.score
            self.display.message(f"step {self.step}: valid {result.scores.describe()}")
        metrics |= self.timer.finish_step()
        metrics["time/tokens_per_second"] = tokens / max(metrics["time/step"], 1e-9)
        entries = [LedgerEntry(prompt.id, "trained") for prompt in batch.prompts]
        entries += [LedgerEntry.bad_utterance(prompt.id, reason) for prompt, reason in batch.rejected]
        self.folder.ledger.append(self.step, entries)
        self.folder.metrics(self.step, metrics)
        self.display.update(self.step, metrics)
        if self.saves():
            self._save(score)

    def _encode(self, prompts: Sequence[Prompt]) -> list[SpeechText | BadUtterance]:
        with self.timer.phase("encode", self.config.engines.generate_timeout_s) as phase:
            return self._items([prompt.utterance for prompt in prompts], phase.remaining())

    def _items(self, utterances: Sequence[Utterance], timeout: float | None) -> list[SpeechText | BadUtterance]:
        targets = [targets_of(self.model, utterance) for utterance in utterances]
        return [
            tokens if isinstance(tokens, BadUtterance) else SpeechText(tokens, target.text_ids, target.attributes)
            for tokens, target in zip(self.system.codecs.tokenise(utterances, timeout), targets, strict=True)
        ]

    def _evaluate(self, split: str) -> Evaluation[Token2TextScores]:
        utterances = self.manifests[split].utterances
        usable, items, predictions = [], [], []
        bad: list[BadUtterance] = []
        for start in range(0, len(utterances), CHUNK):
            chunk = utterances[start : start + CHUNK]
            part = []
            for utterance, item in zip(chunk, self._items(chunk, self.config.engines.generate_timeout_s), strict=True):
                if isinstance(item, BadUtterance):
                    bad.append(item)
                else:
                    usable.append(utterance)
                    part.append(item)
            items += part
            predictions += self.system.learner.predict(part) if part else []
        if bad and (self.config.data.on_bad == "error" or not items):
            raise bad_input(bad)
        return replace(score_predictions(self.model, usable, items, predictions), bad=tuple(bad))

    def evaluate_test(self, when: str) -> Evaluation[Token2TextScores]:
        result = self._evaluate("test")
        self.display.message(f"test {when} training: {result.scores.describe()}")
        return result

    def scores_kind(self) -> type[Token2TextScores]:
        return Token2TextScores

    def conditions(self) -> dict[str, Any]:
        test = self.manifests["test"]
        return {
            "model": self.config.model.path,
            "manifest": test.path,
            "utterances": len(test.utterances),
            "normaliser": NORMALISER_VERSION,
            FINGERPRINT: test.fingerprint(),
        }

    def _save(self, score: float | None = None) -> None:
        """Take a checkpoint: learner shards, the model itself, data position. `score` is the validation's."""
        with self.timer.phase("checkpoint"):
            self.saver.save(self.step, {SCORE: score, **self._state_dict(), **self.clocks()})

    def _state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "source": self.source.state(), "quarantined": self.rejections.state_dict()}

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.restore(state["source"])
        self.rejections.load_state_dict(state.get("quarantined", {}))
        self.trained = int(state["step"])

    def _restore(self, step: int) -> None:
        self.read_state(step, self._load_state_dict)
        self.system.learner.load(str(self.folder.checkpoints.folder(step).resolve()))
        self.display.start_at(step)
        self.display.message(f"resuming from the checkpoint of step {step}")
