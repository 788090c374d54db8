"""REINFORCE++'s advantage with a baseline: rewards relative to their group, normalised over the batch."""

from __future__ import annotations

from collections.abc import Sequence

from learner.batches.advantage import Floats, normalised_over_batch, over_batch
from learner.registries import ADVANTAGES


@ADVANTAGES.register("reinforce_pp_baseline")
@over_batch
def reinforce_pp_baseline(groups: Sequence[Floats]) -> list[Floats]:
    """a = r − the group's mean, divided by the std of all a in the batch (REINFORCE++-baseline, 2501.03262 §3.3).

    With `rewards.normalise_parts` this is GDPO (2601.05242): each reward normalised in its group, summed with its
    weight, and the sum normalised over the batch.
    """
    return normalised_over_batch([rewards - float(rewards.mean()) for rewards in groups])
