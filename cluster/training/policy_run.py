"""`speechrl train`: what surrounds the loop — resume, evaluation, records, checkpoints, interruption, summary."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import ObjectLostError

from cluster.config import RunConfig
from cluster.data.fitness import (
    Check,
    policy_checks,
    reference_check,
    target_check,
    training_judges,
    without_unfit,
)
from cluster.data.rejections import Rejections
from cluster.data.targets import diffro_model
from cluster.evaluation.result import FINGERPRINT, Evaluation
from cluster.evaluation.sampling import evaluation_sampling
from cluster.evaluation.scores import Scores, SpeechScores, TranscriptScores
from cluster.evaluation.split import evaluate_split
from cluster.monitoring.head_watch import HeadWatch
from cluster.monitoring.logs import RunLog
from cluster.monitoring.memory import PeakMemory
from cluster.monitoring.progress import TrainingDisplay
from cluster.monitoring.prometheus import PREFIX, Exporter, Series
from cluster.monitoring.timeline import Timeline, idle_fractions
from cluster.monitoring.watchdog import Watchdog
from cluster.runs.checkpoints import SCORE
from cluster.runs.folder import RunFolder
from cluster.runs.saver import CheckpointSaver
from cluster.runs.snapshot import check_data
from cluster.system import System, listens, run_family
from cluster.training.batch import Step
from cluster.training.interruption import interruption
from cluster.training.metrics import aligned_gaps, fleet_metrics, sample_table, sample_text, step_metrics
from cluster.training.recovery import RestartBudget
from cluster.training.resume import load_state_dict, new_trainer, state_dict
from cluster.training.run import Run, compared
from learner.config import SAMPLED_OBJECTIVES
from learner.gang import LearnerLostError, LearnerOutOfMemoryError
from rollout.errors import WeightsLostError
from speech.audio import load_audio
from speech.errors import UserError
from speech.families import LanguageModelFamily, ModelFamily
from speech.manifests import Manifest
from speech.runtime.hub import pinned
from speech.text import NORMALISER_VERSION

logger = logging.getLogger(__name__)


def train_policy(config: RunConfig, manifests: Mapping[str, Manifest]) -> str:
    """Run, or resume, a training run; returns its status, `completed` or `interrupted`.

    Raises:
        UserError: bad input or configuration; nothing has been trained then.
    """
    family = run_family(config)  # an incomplete model must not leave a run's folder behind
    manifests, unfit = usable_manifests(config, family, manifests)
    with RunFolder(config.runs_dir, config.name) as folder, PeakMemory() as memory:
        resume_from = folder.open(config)
        check_data(folder.path, compared(config, manifests), resume_from is not None)
        folder.rewind(resume_from or 0)
        log = RunLog(folder.path / "log.jsonl", config.name)
        with log, TrainingDisplay(config.name, config.steps) as display:
            display.phase("starting Ray, engines and learner")
            with System(config) as system, HeadWatch():
                run = PolicyRun(config, system, manifests, folder, display, memory, log, unfit)
                status = run.execute(resume_from)
        run.print_result(status)
    return status


def usable_manifests(
    config: RunConfig, family: LanguageModelFamily, manifests: Mapping[str, Manifest]
) -> tuple[dict[str, Manifest], dict[str, str]]:
    """See `without_unfit`."""
    return without_unfit(config, manifests, _checks(config, family, manifests["train"]))


def _checks(config: RunConfig, family: LanguageModelFamily, train: Manifest) -> dict[str, list[Check]]:
    """What can be found wrong with the utterances of each split before the first step."""
    checks: dict[str, list[Check]] = {"train": []}
    if config.objective in SAMPLED_OBJECTIVES:
        checks["train"] = policy_checks(config, family, config.sampling.max_new_tokens, training_judges(config))
    if config.uses_diffro:
        checks["train"].append(target_check(diffro_model(config, train)))
    if isinstance(family, ModelFamily):
        references = [reference_check(config, family)]
        checks |= {"replay": references} | ({"train": references} if config.objective == "sft" else {})
    sound = config.rewards.sound
    judges = [sound.judge, sound.second_judge] if listens(config, training=True) else []
    checks["test"] = policy_checks(config, family, evaluation_sampling(config).max_new_tokens, judges)
    return checks | {"valid": checks["test"]}


class PolicyRun(Run):
    """The training of a policy."""

    def __init__(
        self,
        config: RunConfig,
        system: System,
        manifests: Mapping[str, Manifest],
        folder: RunFolder,
        display: TrainingDisplay,
        memory: PeakMemory,
        log: RunLog,
        unfit: Mapping[str, str],
    ) -> None:
        """`unfit`: see `Rejections`."""
        super().__init__(config, manifests, folder, display, memory, system.learner)
        self.system, self.log = system, log
        self.exporter = Exporter(config.name)
        self.timeline = Timeline(folder.path / "timeline.json")
        self.rejections = Rejections(config.data, unfit)
        self.tell_unfit(unfit)
        self.trainer = new_trainer(config, system, manifests, self.timer, self.rejections)
        self.budget = RestartBudget(config.learner.restarts)
        self.engine_stats, self.fleet_counts = system.fleet.stats(), system.fleet.counts()
        self.encoded = 0
        self.trained = False
        """Whether a step has ended in this execution."""

    @property
    def step(self) -> int:
        return self.trainer.step

    def execute(self, resume_from: int | None) -> str:
        """Train to the end, or until the user stops; returns the run's status."""
        if resume_from is not None:
            self._restore(resume_from)
        self.exporter.gauge(Series(f"{PREFIX}stalled", 0.0))  # an alert on it needs a value from the beginning
        self.trainer.publish(self.trainer.version)
        self.evaluate_before()
        # The evaluation is no part of the first step, which a run that is resumed without a checkpoint does again.
        self.engine_stats, self.encoded = self.system.fleet.stats(), self.system.encoders.encoded_total()
        self.started = time.monotonic()
        with self.exporter, interruption(self.display) as self.interrupted:
            try:
                with Watchdog(self.timer, self.config.watchdog_minutes, self._stalled):
                    self._train()
            except Exception as error:
                self.finish_checkpoint(error)
                raise
        return self.finish()

    def _train(self) -> None:
        """Run the loop to its last checkpoint; after a loss of the learner, or of its input, again from the last one
        that is whole."""
        lost: Exception | None = None
        while True:
            try:
                if lost is not None:
                    self._fall_back()
                self.trainer.run(self._after_step)
                self.save_last(self._save)
                return
            except (LearnerLostError, ObjectLostError, WeightsLostError) as error:
                out_of_memory = isinstance(error, LearnerOutOfMemoryError)
                if not self.budget.lost(self.trainer.step, at_most=int(self.trained) if out_of_memory else None):
                    if out_of_memory:
                        raise UserError(str(error)) from None
                    raise
                lost = error
                logger.warning("step %d: %s; restarting the learner", self.trainer.step, error)

    def _fall_back(self) -> None:
        """What the rerun of a killed command does, but for the processes that still live."""
        with self.timer.phase("recover"):
            self.system.fleet.abandon()
            self.system.stop_learner()
            self.saver.abandon()  # not before its writers are dead
            step, damaged = self.folder.checkpoints.verified()
            for text in damaged:
                logger.warning("%s; an older checkpoint is used", text)
            self.folder.rewind(step or 0)
            self.system.restart_learner()
        self.saver = CheckpointSaver(self.folder.checkpoints, self.system.learner, self.config.checkpoint)
        # A new one: nothing that the old one had under way may survive.
        self.trainer = new_trainer(self.config, self.system, self.manifests, self.timer, self.rejections)
        self.log.at(0, 0)
        if step is not None:
            self._restore(step)
        self.trainer.publish(self.trainer.version)
        self.engine_stats, self.encoded = self.system.fleet.stats(), self.system.encoders.encoded_total()
        self.started = time.monotonic()

    def _after_step(self, step: Step) -> bool:
        """Record, evaluate, save; False ends the training."""
        self.trained = True
        self.saver.poll()
        stats = self.system.fleet.stats()
        encoded = self.system.encoders.encoded_total()
        retried = self.system.rewards.retried if step.batch.groups else 0
        counts, engines = self.system.fleet.counts(), len(self.system.fleet.replicas())
        metrics = step_metrics(step, self.engine_stats, stats, engines, encoded - self.encoded, retried)
        metrics |= fleet_metrics(self.fleet_counts, counts, self.system.pool_sizes())
        self.engine_stats, self.encoded, self.fleet_counts = stats, encoded, counts
        score: float | None = None
        if self.validates():
            scores = self._validate()
            score = scores.score
            metrics |= {f"valid/{name}": value for name, value in scores.metrics().items()}
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
        self.exporter.step(step.number, metrics)
        self.log.at(step.number, self.trainer.version)
        logger.info("step finished in %.1f s", metrics["time/step"])
        if self.saves():
            self._save(step, score)
        return not self.interrupted

    def _timeline(self, step: Step) -> dict[str, float]:
        """Add the step to the timeline, and let the pools draw their conclusions; the components' idle fractions."""
        now, spans, controller = time.time(), self.system.spans(), self.timer.spans.take()
        self.timeline.append(step.number, {"controller": controller, **spans})
        self.system.rescale(controller, spans, self.timer.step_started, now)
        return idle_fractions(spans, self.timer.step_started, now)

    def _validate(self) -> Scores:
        with self.timer.phase("evaluate"):
            if self.config.objective == "sft":
                self.trainer.publish(self.trainer.version + 1)
            result = self._evaluate("valid")
        found = result.scores.metrics()
        if "wer" in found:
            self.display.message(f"step {self.trainer.step}: valid WER {found['wer']:.2%}")
        if isinstance(result.scores, SpeechScores) and result.scores.failed:
            logger.warning(
                "step %d: %d of %d samples of the validation failed; `wer` leaves them out, and `wer_capped`, which "
                "chooses the best checkpoint, counts them as silence",
                self.trainer.step,
                result.scores.failed,
                result.scores.utterances,
            )
        return result.scores

    def _evaluate(self, split: str, waves: Path | None = None) -> Evaluation[Scores]:
        return evaluate_split(self.config, self.system, self.manifests[split].utterances, waves)

    def evaluate_test(self, when: str) -> Evaluation[Scores]:
        if when == "after" and self.config.objective == "sft":
            self.trainer.publish(self.trainer.version + 1)
        return self._evaluate("test", waves=self.folder.path / "audio" / when)

    def scores_kind(self) -> type[Scores]:
        return TranscriptScores if self.config.model.codec is None else SpeechScores

    def conditions(self) -> dict[str, Any]:
        conditions = {
            "model": pinned(self.config.model.path),
            "manifest": self.manifests["test"].path,
            "utterances": len(self.manifests["test"].utterances),
            FINGERPRINT: self.manifests["test"].fingerprint(),
            "max_new_tokens": evaluation_sampling(self.config).max_new_tokens,
            "normaliser": NORMALISER_VERSION,
        }
        if self.config.evaluation.sampled:
            conditions["sampled"] = self.config.sampling.temperature
        return conditions

    def _save(self, step: Step | None = None, score: float | None = None) -> None:
        """Take a checkpoint: learner shards, export, data position, version. `score` is the validation's."""
        trainer = self.trainer
        state = {SCORE: score, **state_dict(trainer), **self.clocks()}
        with self.timer.phase("checkpoint"), trainer.learner_onloaded():
            self.saver.save(trainer.step, state)
        if step is not None and step.batch.groups:
            self._show_sample(step)

    def _stalled(self, report: str | None) -> None:
        """Called by the watchdog's thread; None once things move again."""
        self.exporter.gauge(Series(f"{PREFIX}stalled", float(report is not None)))
        if report is None:
            logger.warning("the run moves again")
        else:
            logger.warning("%s", report, extra={"phase": ",".join(p.name for p in self.timer.open_phases())})

    def _show_sample(self, step: Step) -> None:
        """One prompt with its samples to TensorBoard and the trackers, sound included."""
        group = step.batch.groups[0]
        self.folder.text("samples", sample_text(group), step.number)
        self.folder.table("samples", *sample_table(group), step.number)
        family = self.system.family
        if isinstance(family, ModelFamily):
            wave = load_audio(group.prompt.utterance, family.sample_rate)
            self.folder.audio("samples", wave, family.sample_rate, step.number)

    def _restore(self, step: int) -> None:
        self.read_state(step, partial(load_state_dict, self.trainer))
        self.trainer.onload_learner()
        self.trainer.learner.load(str(self.folder.checkpoints.folder(step).resolve()))
        self.display.start_at(step)
        self.log.at(step, self.trainer.version)
        logger.info("resuming from the checkpoint of step %d", step)
        self.display.message(f"resuming from the checkpoint of step {step}")
