"""RLOO's advantage: rewards relative to the other samples."""

from __future__ import annotations

from learner.batches.advantage import Floats
from learner.registries import ADVANTAGES


@ADVANTAGES.register("leave_one_out")
def leave_one_out(rewards: Floats) -> Floats:
    """r − mean of the other samples: an unbiased baseline, equal to n / (n − 1) · `group_mean` (RLOO, 2402.14740)."""
    others = (float(rewards.sum()) - rewards) / (len(rewards) - 1)
    return rewards - others
