"""Terms that policy losses share, over packed tokens.

Every loss returns its *contribution to the batch loss*: per-token terms are divided by the counts of the whole batch
(`BatchTotals`), so the plain sum over micro-batches and ranks is the batch loss whatever the split. Gradients must
therefore be summed over ranks; FSDP2 averages them unless told otherwise.

Metrics are sums over tokens, and maxima in names that end in `_max`: they merge over micro-batches and ranks as the
losses do (`learner.metrics`). A sum that is not over all tokens comes with their number, under its own name and
`_count`.
"""

from __future__ import annotations

import torch

from learner.batches.batch import BatchTotals
from learner.config import LossConfig

# exp(20) is 5e8: far beyond any ratio that still means something, and far below overflow in float32.
MAX_LOG_RATIO = 20.0


def kl_terms(new_logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Per-token estimates of KL(π ‖ π_ref) from tokens sampled by π, for use *inside* a loss.

    With d = log π − log π_ref on the sampled token (Schulman, "Approximating KL divergence", 2020):

    | estimator | value | expected value | expected gradient |
    |---|---|---|---|
    | k1 | d | KL(π ‖ π_ref) | ∇KL(π ‖ π_ref), borrowed from k2 |
    | k2 | d² / 2 | biased | ∇KL(π ‖ π_ref) |
    | k3 | exp(−d) − 1 + d | KL(π ‖ π_ref) | ∇KL(π_ref ‖ π), the forward KL |

    An estimator of a value is not an estimator of its gradient, because the tokens depend on π too. The gradient of
    k1 itself, ∇log π, has mean zero: as a loss it would only add noise. Its value is therefore joined with the
    gradient of k2, d·∇log π, which is the score-function gradient of the reverse KL (straight-through). k3 keeps its
    own gradient as GRPO defines it (2402.03300, eq. 4).

    These expectations hold for tokens drawn from π (one update per batch); and they are per token: the effect of a
    token on the KL of later positions is left out, as in GRPO.

    Args:
        new_logprobs: (T,) with gradient.
        reference_logprobs: (T,) of the frozen reference policy.
        estimator: `k1`, `k2` or `k3`.

    Returns:
        (T,) in nats.

    Raises:
        ValueError: unknown estimator.
    """
    d = new_logprobs - reference_logprobs.detach()
    if estimator == "k3":
        return torch.exp((-d).clamp(max=MAX_LOG_RATIO)) - 1 + d
    k2 = d.square() / 2
    if estimator == "k2":
        return k2
    if estimator == "k1":
        return k2 + (d - k2).detach()
    raise ValueError(f"unknown KL estimator {estimator!r}; known: k1, k2, k3")


def sums_to_come(values: torch.Tensor, sample_lengths: torch.Tensor, sample_of: torch.Tensor) -> torch.Tensor:
    """(T,) → (T,): at each token the sum over itself and the later tokens of its response.

    Args:
        values: (T,) of packed responses, one after the other.
        sample_lengths: (S,) tokens of each response.
        sample_of: (T,) response of each token.
    """
    before = values.double().cumsum(0)  # over all responses of the micro-batch: what cancels must not cost digits
    last = sample_lengths.cumsum(0) - 1
    return (before[last][sample_of] - before + values).to(values.dtype)


def token_weights(
    sample_of: torch.Tensor, sample_lengths: torch.Tensor, totals: BatchTotals, config: LossConfig, dtype: torch.dtype
) -> torch.Tensor:
    """The factor of each token's term in the batch loss.

    `token`: 1 / tokens (DAPO 2503.14476, eq. 8). `sequence`: 1 / (length · samples) (GRPO 2402.03300, eq. 3).
    `constant`: 1 / (constant_length · samples) (Dr. GRPO 2503.20783, which sums and divides by a constant).

    Returns:
        (T,) weights of the given dtype.

    Raises:
        ValueError: unknown aggregation, or `constant` without a length.
    """
    if config.aggregation == "token":
        return torch.full(sample_of.shape, 1.0 / totals.tokens, dtype=dtype, device=sample_of.device)
    if config.aggregation == "sequence":
        return 1.0 / (sample_lengths[sample_of].to(dtype) * totals.samples)
    if config.aggregation == "constant":
        if config.constant_length < 1:
            raise ValueError("aggregation `constant` needs constant_length ≥ 1 (the rollout's max_new_tokens)")
        scale = 1.0 / (config.constant_length * totals.samples)
        return torch.full(sample_of.shape, scale, dtype=dtype, device=sample_of.device)
    raise ValueError(f"unknown aggregation {config.aggregation!r}; known: token, sequence, constant")
