"""The pool of reward actors. Scoring itself is `rewards.compose`."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError

from cluster.actors.calls import Request
from cluster.actors.pool import ActorPool
from rewards.actor import RewardActor, Scored
from rewards.compose import RewardComposition
from rewards.config import RewardConfig
from rewards.listening.models import SoundModels
from speech.errors import UserError, last_line
from speech.records import Group, Reward

if TYPE_CHECKING:
    from rewards.actor import FamilyFactory
    from rewards.pipeline import CodecFactory

# They are replaced here: Ray's own restart would hand a hung group to the same queue again.
RemoteRewardActor: Any = ray.remote(num_cpus=0.1, max_restarts=0)(RewardActor)
CHUNKS_PER_ACTOR = 4
"""Small enough that actors finish together, large enough that calls cost little."""


@dataclass(slots=True)
class RewardCounts:
    """What a pool has done since it was made.

    Attributes:
        scored: samples with a valid reward.
        invalid: samples without one, by kind of reason (its first two parts, such as `accuracy: ValueError`).
        seconds: that actors spent scoring sound, by stage (`SoundPipeline.seconds`), summed over actors.
    """

    scored: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


class RewardPool(ActorPool[Group, tuple[Reward, ...]]):
    """Scores groups on actors, and fails closed.

    A call that exceeds `timeout_s`, dies, or raises takes its actor with it. Its groups are then tried again *one by
    one*, so that one bad group does not spoil its neighbours, and after `retries` such attempts their samples become
    invalid with the reason.

    Args:
        config: rewards and pool settings.
        codec: builds the codec in each actor, for trajectories that hold speech tokens; None scores records alone.
        family: of the model that sampled, in each actor whose rewards ask which token wrote what; None if none does.

    Attributes:
        lethal: reason by id of each utterance whose group, alone in its call, cost one actor more.

    Raises:
        UserError: a configuration error, found here and not in an actor, or settings out of range.
    """

    what, component, work = "rewards", "rewards", "score"
    queues = False
    alone_after = 1
    failures = (RayError, UserError)

    def __init__(
        self, config: RewardConfig, codec: CodecFactory | None = None, family: FamilyFactory | None = None
    ) -> None:
        if config.count < 1 or config.retries < 0 or not config.timeout_s > 0:
            raise UserError("rewards: count is at least 1, retries at least 0, and timeout_s positive")
        composition = RewardComposition(config)  # a typo must not cost an actor's start
        SoundModels(config.sound).check(composition.needs)
        if composition.on_sound and codec is None:
            names = ", ".join(sorted(composition.on_sound))
            raise UserError(f"rewards.items: {names} score sound, and this run has no speech tokens")
        self.counts = RewardCounts()
        self.lethal: dict[str, str] = {}
        self._config, self._codec, self._family = config, codec, family
        self._gpus = config.sound.judge.gpus if "judge" in composition.needs else 0.0
        self._counting = threading.Lock()
        super().__init__(config.count, attempts=config.retries + 1)

    def shares(self, count: int) -> list[range]:
        """Which of so many groups are scored together, by a call of `score` with `together`."""
        size = max(1, -(-count // (self.wanted * CHUNKS_PER_ACTOR)))
        return [range(count)[start : start + size] for start in range(0, count, size)]

    def score(self, groups: Sequence[Group], together: bool = False) -> list[Group]:
        """The groups with rewards, in the order given.

        Args:
            together: in one call of an actor, unless that fails.

        Raises:
            RuntimeError: when no actor can be started.
        """
        scored = self._run(groups, self._ask, self._config.timeout_s, together)
        with self._counting:
            for rewards in scored:
                for reward in rewards:
                    if reward.invalid is None:
                        self.counts.scored += 1
                    else:
                        self.counts.invalid[": ".join(reward.invalid.split(": ")[:2])] += 1
        return [dataclasses.replace(g, rewards=rewards) for g, rewards in zip(groups, scored, strict=True)]

    def _spawn(self, place: int) -> Any:
        remote = RemoteRewardActor.options(num_gpus=self._gpus)
        return remote.remote(self._config, self._codec, self._family)

    def _split(self, count: int, actors: int) -> list[Sequence[int]]:
        return list(self.shares(count))

    def _ask(self, actor: Any, groups: list[Group]) -> Request[tuple[Reward, ...]]:
        def rewards(scored: Scored) -> list[tuple[Reward, ...]]:
            self.counts.seconds.update(scored.seconds)
            return scored.rewards

        return Request(actor.score.remote(groups), rewards)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"reward time-out: {error}"
        kind = "died" if isinstance(error, RayActorError) else "failed"
        return f"reward actor: {kind}: {last_line(error)}"

    def _exhausted(self, items: list[Group], reason: str, error: Exception) -> list[tuple[Reward, ...]]:
        if self.attempts > 1 and isinstance(error, TimeoutError | RayActorError):  # it hangs or dies, and alone
            self.lethal |= {group.prompt.utterance.id: reason for group in items}
        lost = Reward(total=None, invalid=f"{reason} (attempt {self.attempts})")
        return [(lost,) * len(group.trajectories) for group in items]
