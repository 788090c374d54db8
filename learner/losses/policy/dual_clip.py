"""GRPO with a second clip, where an advantage is negative and the ratio large."""

from __future__ import annotations

import torch

from learner.config import LossConfig
from learner.losses.surrogates import Surrogate, Tokens, clipped_surrogate, policy_loss
from learner.registries import POLICY_LOSSES

BOUND = 3.0
"""c of the paper: of a bad token no more than this multiple of its advantage counts."""


@POLICY_LOSSES.register("dual_clip")
@policy_loss()
def dual_clip_loss(tokens: Tokens, config: LossConfig) -> Surrogate:
    """min(−min(ρ·A, clip(ρ)·A), −c·A) where A < 0, and GRPO's where A ≥ 0 (Ye et al., 1912.09729 eq. 3)."""
    ratio = torch.exp(tokens.log_ratio)
    terms = clipped_surrogate(ratio, tokens.advantages, config)
    bounded = torch.minimum(terms, -BOUND * tokens.advantages)
    return Surrogate(torch.where(tokens.advantages < 0, bounded, terms), ratio)
