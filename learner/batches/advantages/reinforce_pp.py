"""REINFORCE++'s advantage: rewards normalised over the batch."""

from __future__ import annotations

from collections.abc import Sequence

from learner.batches.advantage import Floats, normalised_over_batch, over_batch
from learner.registries import ADVANTAGES


@ADVANTAGES.register("reinforce_pp")
@over_batch
def reinforce_pp(groups: Sequence[Floats]) -> list[Floats]:
    """(r − mean) / std over all samples of the batch, of whatever group (REINFORCE++, 2501.03262 §3.2).

    A prompt whose samples are all good or all bad teaches, too: `zero_variance: keep`.
    """
    return normalised_over_batch(groups)
