"""GSPO: ratio and clip of whole responses."""

from __future__ import annotations

import torch

from learner.config import LossConfig
from learner.losses.surrogates import Surrogate, Tokens, clipped_surrogate, policy_loss
from learner.registries import POLICY_LOSSES


@POLICY_LOSSES.register("gspo")
@policy_loss(of_samples=True)
def gspo_loss(tokens: Tokens, config: LossConfig) -> Surrogate:
    """−min(s·A, clip(s, 1 − clip_low, 1 + clip_high)·A) with s = (π_new(o) / π_old(o))^(1/|o|) of a whole response
    (Zheng et al., 2507.18071 eq. 5 to 7).

    The paper takes the mean over responses (`aggregation: sequence`) and clips at 3e-4 and 4e-4, because the mean of a
    response varies less than its tokens.
    """
    ratio = torch.exp(tokens.mean(tokens.log_ratio))
    return Surrogate(clipped_surrogate(ratio, tokens.advantages, config), ratio)
