"""GRPO: the clipped policy gradient with group advantages."""

from __future__ import annotations

import torch

from learner.batches.batch import BatchTotals
from learner.config import LossConfig
from learner.losses.terms import MAX_LOG_RATIO, kl_terms, token_weights
from learner.metrics import Metrics
from learner.registries import POLICY_LOSSES


@POLICY_LOSSES.register("grpo")
def grpo_loss(
    *,
    new_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor | None,
    entropy: torch.Tensor,
    advantages: torch.Tensor,
    sample_of: torch.Tensor,
    sample_lengths: torch.Tensor,
    totals: BatchTotals,
    config: LossConfig,
) -> tuple[torch.Tensor, Metrics]:
    """Clipped policy gradient with group advantages (GRPO, 2402.03300 eq. 3; asymmetric clip of DAPO, 2503.14476).

    Per token, with ratio r = π_new / π_old and truncated importance weight w = min(π_old / π_behaviour, cap):
    `−w · min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A) + kl_coef · KL`. The weight corrects for the engine's own
    numerics and for staleness; it carries no gradient.

    Args:
        new_logprobs: (T,) of the policy that learns, with gradient.
        old_logprobs: (T,) of the proximal policy: the policy before the first update on this batch. With a single
            update per batch it equals `new_logprobs.detach()`, and no ratio is ever clipped.
        behaviour_logprobs: (T,) of the engine that sampled.
        reference_logprobs: (T,) of the frozen reference; needed when `kl_coef` > 0, otherwise the KL is only logged.
        entropy: (T,) nats, for the metrics only.
        advantages: (S,) one per response.
        sample_of: (T,) response of each token.
        sample_lengths: (S,) tokens of each response.
        totals: counts over the whole batch, all micro-batches and ranks.
        config: clip range, KL, aggregation, importance cap.

    Returns:
        The contribution to the batch loss (scalar), and its metrics (float64).

    Raises:
        ValueError: `kl_coef` > 0 without reference log-probs, or an unknown option.
    """
    if config.kl_coef > 0 and reference_logprobs is None:
        raise ValueError("kl_coef > 0 needs the log-probs of a reference policy")
    old, behaviour = old_logprobs.detach(), behaviour_logprobs.detach()
    advantage = advantages.to(new_logprobs.dtype)[sample_of]
    ratio = torch.exp((new_logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    terms = -torch.minimum(ratio * advantage, clipped * advantage)

    sums: Metrics = {}
    if config.importance_cap > 0:
        weight = torch.exp((old - behaviour).clamp(max=MAX_LOG_RATIO))
        sums["importance_capped"] = weight > config.importance_cap
        terms = terms * weight.clamp(max=config.importance_cap)
    if reference_logprobs is not None:
        # The full KL is a term of its own: it needs more than the sampled tokens. Beside it k3 is logged alone.
        full = config.kl_estimator == "full"
        kl = kl_terms(new_logprobs, reference_logprobs, "k3" if full else config.kl_estimator)
        sums["kl"] = kl.detach()
        terms = terms if full else terms + config.kl_coef * kl
    loss = (terms * token_weights(sample_of, sample_lengths, totals, config, terms.dtype)).sum()

    with torch.no_grad():
        # Of the policy before the first update: it should be the one that sampled, so any gap is a mismatch.
        gap = (old - behaviour).abs()
        # Untruncated on purpose: the effective sample size must show the mismatch that a cap would hide.
        weight = torch.exp((old - behaviour).clamp(max=MAX_LOG_RATIO))
        sums |= {
            "tokens": torch.ones_like(gap),
            "clipped_low": (ratio < 1 - config.clip_low) & (advantage < 0),
            "clipped_high": (ratio > 1 + config.clip_high) & (advantage > 0),
            "entropy": entropy,
            "importance": weight,
            "importance_squared": weight.square(),
            "logprob_gap": gap,
        }
        metrics = {name: value.double().sum() for name, value in sums.items()}
    return loss, metrics | {"logprob_gap_max": gap.max().double()}
