"""Scored groups → training groups: advantages, and the filter of zero-variance groups (DAPO's dynamic sampling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from learner.batches.advantage import advantage_per_reward, compute_batch_advantages, is_zero_variance
from learner.batches.batch import Sample, TrainGroup
from speech.records import Group

ZERO_VARIANCE = "zero variance"
"""Why a group is rejected whose valid samples all have the same reward."""
UNSCORED = "fewer than 2 valid samples"
"""How the reason begins of a group that is rejected for want of rewards."""


@dataclass(slots=True)
class Selection:
    """Outcome of a batch of scored groups.

    Attributes:
        groups: what to train on.
        trained: prompt ids behind `groups`, in order.
        rejected: (prompt id, reason) for the others.
        zero_variance: groups whose valid samples all had the same reward, whatever was done with them.
        invalid_samples: samples without a reward.
    """

    groups: list[TrainGroup] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    zero_variance: int = 0
    invalid_samples: int = 0

    def extend(self, other: Selection) -> None:
        self.groups += other.groups
        self.trained += other.trained
        self.rejected += other.rejected
        self.zero_variance += other.zero_variance
        self.invalid_samples += other.invalid_samples


@dataclass(frozen=True, slots=True)
class Target:
    """What the Token2Text reward model should find in the speech of a group; see `TrainGroup`."""

    text_ids: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()


def select_groups(
    groups: Sequence[Group],
    audio: Sequence[int],
    estimator: str,
    keep_zero_variance: bool,
    targets: Sequence[Target] | None = None,
) -> Selection:
    """Turn scored groups into training groups.

    Args:
        groups: scored groups; all of a batch, for an estimator over the batch.
        audio: index of each group's encoded audio.
        estimator: name of the advantage estimator.
        keep_zero_variance: keep groups without a reward difference; their advantages are 0, but they count in
            the loss's normalisation.
        targets: of each group, for DiffRO; None without it.
    """
    selection = Selection()
    kept: list[tuple[Group, int, Target, list[float], list[bool]]] = []
    for group, index, target in zip(groups, audio, targets or [Target()] * len(groups), strict=True):
        valid = [reward.valid for reward in group.rewards]
        rewards = [reward.total if reward.total is not None else 0.0 for reward in group.rewards]
        selection.invalid_samples += valid.count(False)
        if sum(valid) < 2:
            reasons = sorted({reward.invalid for reward in group.rewards if reward.invalid})
            selection.rejected.append((group.prompt.id, f"{UNSCORED}: {'; '.join(reasons)}"))
            continue
        if is_zero_variance(rewards, valid):
            selection.zero_variance += 1
            if not keep_zero_variance:
                selection.rejected.append((group.prompt.id, ZERO_VARIANCE))
                continue
        kept.append((group, index, target, rewards, valid))
    computed = compute_batch_advantages(estimator, [(rewards, valid) for *_, rewards, valid in kept])
    for (group, index, target, rewards, valid), advantages in zip(kept, computed, strict=True):
        scale = advantage_per_reward(advantages, rewards, valid)
        samples = tuple(
            Sample(
                trajectory.token_ids,
                trajectory.logprobs,
                float(advantage),
                finished=trajectory.finish_reason == "stop",
                token_credit=tuple(scale * credit for credit in reward.token_credit),
            )
            for trajectory, reward, advantage, ok in zip(
                group.trajectories, group.rewards, advantages, valid, strict=True
            )
            if ok and trajectory.token_ids
        )
        selection.groups.append(TrainGroup(group.layout, samples, index, target.text_ids, target.attributes))
        selection.trained.append(group.prompt.id)
    return selection
