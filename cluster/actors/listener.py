"""The actor that listens to the speech of evaluations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import ray

from cluster.actors.remote import draining_nodes, get
from rewards.config import RewardConfig
from rewards.pipeline import CodecFactory
from rewards.report import SampleReport, SoundReporter
from rollout.environment import actor_environment
from speech.edits import scored_language
from speech.errors import last_line
from speech.records import Group

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Actors that the same samples are given to."""
START_S = 600.0
WHAT = "listen"


@ray.remote
class ListenerActor:
    """`SoundReporter` in a process of its own: both judges and the speaker model live there."""

    def __init__(self, config: RewardConfig, codec: CodecFactory) -> None:
        self._reporter = SoundReporter(config, codec)

    def ready(self) -> str:
        """Loads all models; the hex id of the node."""
        self._reporter.load()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def report(self, groups: Sequence[Group], folder: Path | None) -> list[list[SampleReport]]:
        return self._reporter.report(groups, folder)


class Listener:
    """The actor that listens to what is evaluated, seen from the controller.

    One that dies, or that does not answer in time, is replaced, and listens again to what its predecessor was asked
    about. Samples that `ATTEMPTS` of them were lost on are reported as failed: training does not hang on being heard.

    Attributes:
        replaced: actors that were replaced so far.
    """

    def __init__(self, config: RewardConfig, codec: CodecFactory) -> None:
        self._config, self._codec = config, codec
        self.replaced = 0
        self._spawn()

    def start(self) -> list[ray.ObjectRef]:
        """What to wait for until all models are loaded."""
        return [self._ready]

    def report(self, groups: Sequence[Group], folder: Path | None, timeout: float | None) -> list[SampleReport]:
        """One report per sample, group by group.

        Args:
            timeout: of one attempt, in seconds. A new actor has `START_S` to load its models before that.
        """
        self._leave_node_that_goes()
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                get([self._ready], f"{WHAT}: start", START_S)
                call = self._actor.report.remote(list(groups), folder)
                reports: list[list[SampleReport]] = get([call], WHAT, timeout)[0]
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                reason = last_line(error)
                self._replace(reason)
            else:
                return [report for group in reports for report in group]
        logger.error("%s: %d actors were lost on %d samples: %s", WHAT, ATTEMPTS, len(groups), reason)
        return [unheard(group, index, reason) for group in groups for index in range(len(group.trajectories))]

    def _spawn(self) -> None:
        threads = self._config.sound.threads
        environment = {"env_vars": actor_environment(threads)}
        self._actor = ListenerActor.options(num_cpus=threads, runtime_env=environment).remote(  # type: ignore[attr-defined]
            self._config, self._codec
        )
        self._ready = self._actor.ready.remote()

    def _leave_node_that_goes(self) -> None:
        """Between two reports nothing is lost with the actor."""
        going = draining_nodes()
        if going and ray.wait([self._ready], timeout=0)[0]:
            try:
                node = ray.get(self._ready)
            except ray.exceptions.RayActorError:
                return  # the report will say so
            if node in going:
                self._replace("its node is about to go")

    def _replace(self, reason: str) -> None:
        logger.warning("%s: replacing the actor: %s", WHAT, reason)
        ray.kill(self._actor)
        self.replaced += 1
        self._spawn()


def unheard(group: Group, index: int, reason: str) -> SampleReport:
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
        seconds=None,
        f0_std=None,
        finished=trajectory.finish_reason == "stop",
        problems=(f"{WHAT}: {reason}",),
    )
