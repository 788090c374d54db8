"""What takes the place of `ListenerActor`, in a file that loads no torch: its process starts sooner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from rewards.config import RewardConfig
from speech.records import Group


@ray.remote(num_cpus=0)
class ListenerStandIn:
    """Reports each sample's text, and ends itself at the text `die`. It starts where its folder exists."""

    def __init__(self, config: RewardConfig, folder: Callable[[], Path], quality: bool) -> None:
        assert folder().is_dir(), "no judge"

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def report(self, groups: Sequence[Group], folder: Path | None) -> list[list[str]]:
        texts = [group.prompt.utterance.text for group in groups]
        if "die" in texts:
            ray.actor.exit_actor()
        return [[text] * len(group.trajectories) for group, text in zip(groups, texts, strict=True)]
