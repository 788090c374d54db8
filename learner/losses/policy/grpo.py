"""GRPO: the clipped policy gradient with group advantages."""

from __future__ import annotations

import torch

from learner.config import LossConfig
from learner.losses.surrogates import Surrogate, Tokens, clipped_surrogate, policy_loss
from learner.registries import POLICY_LOSSES


@POLICY_LOSSES.register("grpo")
@policy_loss()
def grpo_loss(tokens: Tokens, config: LossConfig) -> Surrogate:
    """−min(ρ·A, clip(ρ, 1 − clip_low, 1 + clip_high)·A) with the ratio ρ = π_new / π_old of each token (GRPO,
    2402.03300 eq. 3; asymmetric clip of DAPO, 2503.14476)."""
    ratio = torch.exp(tokens.log_ratio)
    return Surrogate(clipped_surrogate(ratio, tokens.advantages, config), ratio)
