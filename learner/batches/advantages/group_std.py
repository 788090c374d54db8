"""GRPO's advantage: rewards normalised in their group."""

from __future__ import annotations

from learner.batches.advantage import STD_EPSILON, Floats
from learner.registries import ADVANTAGES


@ADVANTAGES.register("group_std")
def group_std(rewards: Floats) -> Floats:
    """(r − mean) / (std + 1e-6), with the sample standard deviation (n − 1) (GRPO, 2402.03300 §4.1.2)."""
    return (rewards - float(rewards.mean())) / (float(rewards.std(ddof=1)) + STD_EPSILON)
