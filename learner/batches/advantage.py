"""Advantages of the samples of one group.

An estimator is one function from the valid rewards of a group, (n,) with n ≥ 2, to advantages (n,), in a module of
`learner/batches/advantages/`. Invalid samples, tiny groups and groups without variance are handled once, here. One that
needs the whole batch is marked with `over_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from learner.registries import ADVANTAGES

Floats = npt.NDArray[np.float64]

SAME_REWARD = 1e-4
"""Rewards of a group that differ by no more, relative to the largest and at least absolutely, are the same.

`group_std` divides by their deviation: of rewards that differ by 1e-5, as two judgements of one sound in float32 do, it
would make advantages of ±1. Other systems add 1e-4 to the deviation instead; that bends all advantages a little, and
still makes 0.1 of these. What a reward is meant to tell apart is coarser: one word in a thousand is 1e-3.
"""


STD_EPSILON = 1e-6

OverBatch = Callable[[Sequence[Floats]], list[Floats]]


def over_batch(estimator: OverBatch) -> OverBatch:
    """Mark an estimator that takes the valid rewards of all groups of a batch, and returns the advantages of each."""
    estimator.over_batch = True  # type: ignore[attr-defined]
    return estimator


def is_over_batch(name: str) -> bool:
    """Whether an estimator needs all groups of a batch at once.

    Raises:
        UserError: no estimator of that name.
    """
    return bool(getattr(ADVANTAGES.find(name), "over_batch", False))


def normalised_over_batch(groups: Sequence[Floats]) -> list[Floats]:
    """(x − mean) / (std + 1e-6) over all values of all groups, with the sample standard deviation; 0 where all are the
    same."""
    together = np.concatenate(groups)
    if _same(together):
        return [np.zeros_like(values) for values in groups]
    mean, std = float(together.mean()), float(together.std(ddof=1))
    return [(values - mean) / (std + STD_EPSILON) for values in groups]


def compute_batch_advantages(
    name: str, groups: Sequence[tuple[Sequence[float] | Floats, Sequence[bool] | npt.NDArray[np.bool_]]]
) -> list[Floats]:
    """Advantages (G,) of each of several groups, given as rewards and validity; see `compute_advantages`.

    An estimator over the batch gives groups without variance advantages, too.
    """
    if not is_over_batch(name):
        return [compute_advantages(name, rewards, valid) for rewards, valid in groups]
    chosen = [_valid_rewards(rewards, valid) for rewards, valid in groups]
    found = ADVANTAGES.find(name)([values for values, _ in chosen]) if chosen else []
    advantages = []
    for (_, mask), values in zip(chosen, found, strict=True):
        whole = np.zeros(len(mask))
        whole[mask] = values
        advantages.append(whole)
    return advantages


def compute_advantages(
    name: str, rewards: Sequence[float] | Floats, valid: Sequence[bool] | npt.NDArray[np.bool_]
) -> Floats:
    """Advantages (G,) of one group, float64, by a registered estimator of groups.

    They are 0 for invalid samples, whose rewards are never looked at, and 0 everywhere when fewer than two samples are
    valid or when all valid rewards are the same.

    Args:
        name: of the estimator, or a user's own as `module:function`.
        rewards: (G,); any number for invalid samples.
        valid: (G,).

    Raises:
        UserError: no estimator of that name.
        ValueError: shapes differ, or a valid reward is not finite.
    """
    estimator = ADVANTAGES.find(name)
    chosen, mask = _valid_rewards(rewards, valid)
    advantages = np.zeros(len(mask))
    if not _same(chosen):
        advantages[mask] = estimator(chosen)
    return advantages


def advantage_per_reward(advantages: Floats, rewards: Sequence[float] | Floats, valid: Sequence[bool]) -> float:
    """By how much the advantage of a group's best valid sample exceeds that of its worst, per unit of their rewards.

    Every estimator here is linear inside a group, so this is what it multiplies rewards with: 1 / std in `group_std`. 0
    where all rewards are the same.
    """
    chosen, mask = _valid_rewards(rewards, valid)
    if _same(chosen):
        return 0.0
    best, worst = int(chosen.argmax()), int(chosen.argmin())
    among = advantages[mask]
    return float((among[best] - among[worst]) / (chosen[best] - chosen[worst]))


def is_zero_variance(rewards: Sequence[float] | Floats, valid: Sequence[bool] | npt.NDArray[np.bool_]) -> bool:
    """True when a group teaches nothing: fewer than two valid samples, or the same reward for all of them."""
    return _same(_valid_rewards(rewards, valid)[0])


def _same(chosen: Floats) -> bool:
    return len(chosen) < 2 or bool(np.ptp(chosen) <= SAME_REWARD * max(1.0, float(np.abs(chosen).max())))


def _valid_rewards(
    rewards: Sequence[float] | Floats, valid: Sequence[bool] | npt.NDArray[np.bool_]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    values, mask = np.asarray(rewards, dtype=np.float64), np.asarray(valid, dtype=bool)
    if values.ndim != 1 or values.shape != mask.shape:
        raise ValueError(f"rewards and validity must both be (G,), not {values.shape} and {mask.shape}")
    chosen = values[mask]
    if not np.isfinite(chosen).all():
        raise ValueError(f"a valid reward is not finite: {chosen.tolist()}")
    return chosen, mask
