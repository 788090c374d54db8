"""The actor that listens to the speech of evaluations."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from cluster.actors.calls import Request
from cluster.actors.pool import ActorPool
from cluster.actors.roster import StartError
from rewards.config import RewardConfig
from rewards.listening.judge import JudgeLostError
from rewards.pipeline import CodecFactory
from rewards.report import SampleReport, SoundReporter
from rollout.environment import actor_environment
from speech.edits import scored_language
from speech.records import Group

logger = logging.getLogger(__name__)


@ray.remote
class ListenerActor:
    """`SoundReporter` in a process of its own: both judges and the speaker model live there."""

    def __init__(self, config: RewardConfig, codec: CodecFactory, quality: bool) -> None:
        self._reporter = SoundReporter(config, codec, quality=quality)

    def ready(self) -> str:
        """Loads all models; the hex id of the node."""
        self._reporter.load()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def report(self, groups: Sequence[Group], folder: Path | None) -> list[list[SampleReport]]:
        return self._reporter.report(groups, folder)


class Listener(ActorPool[Group, list[SampleReport]]):
    """The actor that listens to what is evaluated: a pool of one.

    Samples that nobody could listen to are reported as failed: training does not hang on being heard.
    """

    what, component, work = "listen", "listener", "listen"
    failures = (RayActorError, JudgeLostError)

    def __init__(self, config: RewardConfig, codec: CodecFactory, quality: bool = False) -> None:
        """`quality`: see `SoundReporter`."""
        self._config, self._codec, self._quality = config, codec, quality
        super().__init__(1)

    def report(self, groups: Sequence[Group], folder: Path | None, timeout: float | None) -> list[SampleReport]:
        """One report per sample, group by group.

        Args:
            timeout: of one attempt, in seconds.
        """

        def ask(actor: Any, items: list[Group]) -> Request[list[SampleReport]]:
            return Request(actor.report.remote(items, folder), lambda reports: reports)

        try:
            reports = self._run(groups, ask, timeout)
        except StartError as error:
            reports = self._exhausted(list(groups), str(error).removeprefix(f"{self.what}: "), error)
        return [report for group in reports for report in group]

    def _spawn(self, place: int) -> Any:
        sound = self._config.sound
        threads, gpus = sound.threads, sound.judge.gpus + sound.second_judge.gpus
        environment = {"env_vars": actor_environment(threads)}
        options = {"num_cpus": threads, "num_gpus": gpus if gpus <= 1 else math.ceil(gpus), "runtime_env": environment}
        return ListenerActor.options(**options).remote(self._config, self._codec, self._quality)  # type: ignore[attr-defined]

    def _exhausted(self, items: list[Group], reason: str, error: Exception) -> list[list[SampleReport]]:
        samples = sum(len(group.trajectories) for group in items)
        logger.error("%s: %d actors were lost on %d samples: %s", self.what, self.attempts, samples, reason)
        return [
            [unheard(group, i, f"{self.what}: {reason}") for i in range(len(group.trajectories))] for group in items
        ]


def unheard(group: Group, index: int, problem: str) -> SampleReport:
    """The report on a sample that nobody could listen to."""
    utterance, trajectory = group.prompt.utterance, group.trajectories[index]
    return SampleReport(
        prompt_id=group.prompt.id,
        index=trajectory.index,
        text=utterance.text,
        language=scored_language(utterance.text, "", utterance.language),
        heard=None,
        heard_second=None,
        edits=None,
        edits_second=None,
        speaker_similarity=None,
        speaker_similarity_original=None,
        seconds=None,
        f0_std=None,
        finished=trajectory.finish_reason == "stop",
        problems=(problem,),
    )
