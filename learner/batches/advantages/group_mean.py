"""Dr. GRPO's advantage: rewards relative to their group's mean."""

from __future__ import annotations

from learner.batches.advantage import Floats
from learner.registries import ADVANTAGES


@ADVANTAGES.register("group_mean")
def group_mean(rewards: Floats) -> Floats:
    """r − mean: without the division that favours very easy and very hard prompts (Dr. GRPO, 2503.20783 §3.1)."""
    return rewards - float(rewards.mean())
