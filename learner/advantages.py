"""Advantages of the samples of one group.

A new estimator is one function from the valid rewards of a group, (n,) with n ≥ 2, to advantages (n,), decorated
with `@advantage("name")`. Invalid samples, tiny groups and groups without variance are handled once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from speech.errors import UserError

Floats = npt.NDArray[np.float64]
Estimator = Callable[[Floats], Floats]
AdvantageFunction = Callable[[Sequence[float] | Floats, Sequence[bool] | npt.NDArray[np.bool_]], Floats]

ADVANTAGES: dict[str, AdvantageFunction] = {}

# Rewards are sums of a few weighted parts: equal parts can differ in the last bits, and dividing by such a "standard
# deviation" would turn rounding into advantages of ±1.
SAME_REWARD = 1e-9

STD_EPSILON = 1e-6


def advantage(name: str) -> Callable[[Estimator], AdvantageFunction]:
    """Register an estimator under `learner.advantage`.

    The registered function takes rewards (G,) and validity (G,), and returns float64 advantages (G,): 0 for invalid
    samples, whose rewards are never looked at, and 0 everywhere when fewer than two samples are valid or when all
    valid rewards are the same. It raises ValueError when the shapes differ or a valid reward is not finite.
    """

    def register(estimator: Estimator) -> AdvantageFunction:
        if name in ADVANTAGES:
            raise ValueError(f"advantage {name!r} is registered twice")

        def estimate(rewards: Sequence[float] | Floats, valid: Sequence[bool] | npt.NDArray[np.bool_]) -> Floats:
            chosen, mask = _valid_rewards(rewards, valid)
            advantages = np.zeros(len(mask))
            if not _same(chosen):
                advantages[mask] = estimator(chosen)
            return advantages

        estimate.__name__ = estimate.__qualname__ = getattr(estimator, "__name__", name)
        estimate.__doc__ = estimator.__doc__
        ADVANTAGES[name] = estimate
        return estimate

    return register


def compute_advantages(
    name: str, rewards: Sequence[float] | Floats, valid: Sequence[bool] | npt.NDArray[np.bool_]
) -> Floats:
    """Advantages (G,) of one group by a registered estimator; see `advantage` for the rules that all of them share.

    Args:
        name: of the estimator.
        rewards: (G,); any number for invalid samples.
        valid: (G,).

    Raises:
        UserError: no estimator of that name; the message lists those there are.
        ValueError: shapes differ, or a valid reward is not finite.
    """
    if name not in ADVANTAGES:
        raise UserError(f"unknown advantage {name!r}; known: {', '.join(sorted(ADVANTAGES))}")
    return ADVANTAGES[name](rewards, valid)


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


@advantage("group_std")
def group_std(rewards: Floats) -> Floats:
    """(r − mean) / (std + 1e-6), with the sample standard deviation (n − 1) (GRPO, 2402.03300 §4.1.2)."""
    return (rewards - float(rewards.mean())) / (float(rewards.std(ddof=1)) + STD_EPSILON)


@advantage("group_mean")
def group_mean(rewards: Floats) -> Floats:
    """r − mean: without the division that favours very easy and very hard prompts (Dr. GRPO, 2503.20783 §3.1)."""
    return rewards - float(rewards.mean())


@advantage("leave_one_out")
def leave_one_out(rewards: Floats) -> Floats:
    """r − mean of the other samples: an unbiased baseline, equal to n / (n − 1) · `group_mean` (RLOO, 2402.14740)."""
    others = (float(rewards.sum()) - rewards) / (len(rewards) - 1)
    return rewards - others
