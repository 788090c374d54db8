"""The actor that listens to the speech of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray

from cluster.remote import get
from rewards.config import RewardConfig
from rewards.sound_pipeline import CodecFactory
from rewards.sound_report import SampleReport, SoundReporter
from rollout.actors import actor_environment
from speech.records import Group


@ray.remote
class ListenerActor:
    """`SoundReporter` in a process of its own: both judges and the speaker model live there."""

    def __init__(self, config: RewardConfig, codec: CodecFactory) -> None:
        self._reporter = SoundReporter(config, codec)

    def ready(self) -> None:
        """Loads all models."""
        self._reporter.load()

    def report(self, groups: Sequence[Group], folder: Path | None) -> list[list[SampleReport]]:
        return self._reporter.report(groups, folder)


class Listener:
    """The actor that listens to what is evaluated, seen from the controller."""

    def __init__(self, config: RewardConfig, codec: CodecFactory) -> None:
        threads = config.sound.threads
        environment = {"env_vars": actor_environment(threads)}
        self._actor = ListenerActor.options(num_cpus=threads, runtime_env=environment).remote(  # type: ignore[attr-defined]
            config, codec
        )

    def start(self) -> list[ray.ObjectRef]:
        """What to wait for until all models are loaded."""
        return [self._actor.ready.remote()]

    def report(self, groups: Sequence[Group], folder: Path | None, timeout: float | None) -> list[SampleReport]:
        """One report per sample, group by group."""
        calls = [self._actor.report.remote(list(groups), folder)]
        return [report for group in get(calls, "listen", timeout)[0] for report in group]
