"""CISPO: the importance weight is clipped, and every token keeps its gradient."""

from __future__ import annotations

import torch

from learner.config import LossConfig
from learner.losses.surrogates import Surrogate, Tokens, policy_loss
from learner.registries import POLICY_LOSSES


@POLICY_LOSSES.register("cispo")
@policy_loss()
def cispo_loss(tokens: Tokens, config: LossConfig) -> Surrogate:
    """−sg[clip(ρ, 1 − clip_low, 1 + clip_high)]·A·log π_new (MiniMax-M1, 2506.13585 eq. 4 and 5).

    The paper has no lower bound: `clip_low: 1`.
    """
    ratio = torch.exp(tokens.log_ratio)
    weight = ratio.detach().clamp(1 - config.clip_low, 1 + config.clip_high)
    return Surrogate(-weight * tokens.advantages * tokens.new, ratio)
