"""GMPO: the geometric mean of clipped ratios."""

from __future__ import annotations

import math

import torch

from learner.config import LossConfig
from learner.losses.surrogates import Surrogate, Tokens, policy_loss
from learner.registries import POLICY_LOSSES


@POLICY_LOSSES.register("gmpo")
@policy_loss(of_samples=True)
def gmpo_loss(tokens: Tokens, config: LossConfig) -> Surrogate:
    """−A·(Π_t ρ̃_t)^(1/|o|): of a good response each token's ratio counts up to 1 + clip_high, of a bad one down to
    1 − clip_low (Zhao et al., 2507.20673 eq. 4).

    The paper takes the mean over responses (`aggregation: sequence`) and the range (e^−0.4, e^0.4), which is
    `clip_low: 0.33`, `clip_high: 0.49`.
    """
    low = math.log(1 - config.clip_low) if config.clip_low < 1 else -math.inf
    good = tokens.log_ratio.clamp(max=math.log(1 + config.clip_high))
    bad = tokens.log_ratio.clamp(min=low)
    bounded = torch.where(tokens.advantages < 0, bad, good)
    return Surrogate(-tokens.advantages * torch.exp(tokens.mean(bounded)), torch.exp(tokens.log_ratio))
