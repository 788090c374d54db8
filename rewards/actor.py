"""The reward actor: rewards, with or without sound, in a process of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import ray

from rewards.compose import RewardComposition
from rewards.config import RewardConfig
from speech.records import Group, Reward

if TYPE_CHECKING:
    from rewards.pipeline import CodecFactory, SoundPipeline
    from speech.families import LanguageModelFamily

    FamilyFactory = Callable[[], LanguageModelFamily]
    """Binds the run's family to its checkpoint inside the process that will use it; picklable."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the actor answers: the rewards of each group, and the seconds that its stages took.

    The groups stay where they are: the pool has them, and a trajectory is far larger than its reward.
    """

    rewards: list[tuple[Reward, ...]]
    seconds: Counter[str] = field(default_factory=Counter)


class RewardActor:
    """One process that scores groups: by a `RewardComposition`, or where a reward scores sound by a `SoundPipeline`."""

    def __init__(
        self, config: RewardConfig, codec: CodecFactory | None = None, family: FamilyFactory | None = None
    ) -> None:
        self._composition = RewardComposition(config)
        self._family = family() if family is not None and self._composition.needs_spans else None
        self._sound: SoundPipeline | None = None
        if codec is not None and self._composition.on_sound:
            from rewards.pipeline import SoundPipeline  # imports torch: seconds, which rewards on text do without

            self._sound = SoundPipeline(config, codec)
            self._sound.load()

    def ready(self) -> str:
        """Returns once the composition is built and its models are loaded: the hex id of the node."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def score(self, groups: Sequence[Group]) -> Scored:
        if self._family is not None:
            groups = [_with_spans(self._family, group) for group in groups]
        if self._sound is None:
            return Scored([self._composition.score(group).rewards for group in groups])
        self._sound.seconds.clear()
        rewards = [group.rewards for group in self._sound.score(groups)]
        return Scored(rewards, Counter(self._sound.seconds))


def _with_spans(family: LanguageModelFamily, group: Group) -> Group:
    """The group, its trajectories with the characters that each token wrote."""
    from speech.families.spelling import token_spans

    spelled = (replace(t, spans=token_spans(family, t.token_ids, t.text)) for t in group.trajectories)
    return replace(group, trajectories=tuple(spelled))
