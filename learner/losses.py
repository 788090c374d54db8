"""Policy losses over packed tokens, and the supervised loss.

Every loss here returns its *contribution to the batch loss*: per-token terms are divided by the counts of the whole
batch (`BatchTotals`), so the plain sum over micro-batches and ranks is the batch loss whatever the split. Gradients
must therefore be summed over ranks; FSDP2 averages them unless told otherwise.

Metrics are sums over tokens, and maxima in names that end in `_max`: they merge over micro-batches and ranks as the
losses do (`reduce_metrics`), and become means at the end (`summarise_metrics`).

A new policy loss is one function with the keyword arguments of `grpo_loss`, decorated with `@policy_loss("name")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from learner.batch import BatchTotals
from speech.errors import UserError

Metrics = dict[str, torch.Tensor]
PolicyLoss = Callable[..., tuple[torch.Tensor, Metrics]]

POLICY_LOSSES: dict[str, PolicyLoss] = {}

# exp(20) is 5e8: far beyond any ratio that still means something, and far below overflow in float32.
MAX_LOG_RATIO = 20.0


@dataclass
class LossConfig:
    name: str = field(default="grpo", metadata={"help": "Registered policy loss.", "choices": POLICY_LOSSES})
    clip_low: float = field(default=0.2, metadata={"help": "Ratio is clipped below at 1 − clip_low.", "min": 0.0})
    clip_high: float = field(
        default=0.28, metadata={"help": "Ratio is clipped above at 1 + clip_high (DAPO's clip-higher).", "min": 0.0}
    )
    kl_coef: float = field(
        default=0.0, metadata={"help": "Weight of KL(policy ‖ reference); 0 loads no reference policy.", "min": 0.0}
    )
    kl_estimator: str = field(
        default="k3",
        metadata={
            "help": "Per-token KL estimator in the loss: `k3` is GRPO's; `k1` and `k2` have the gradient of the "
            "reverse KL.",
            "choices": ("k1", "k2", "k3"),
        },
    )
    aggregation: str = field(
        default="token",
        metadata={
            "help": "Mean over all tokens of the batch (`token`, DAPO), mean over each response and then over "
            "responses (`sequence`, GRPO), or sum divided by responses × constant_length (`constant`, Dr. GRPO).",
            "choices": ("token", "sequence", "constant"),
        },
    )
    constant_length: int = field(
        default=0,
        metadata={"help": "Length that divides in `constant` aggregation: the rollout's max_new_tokens.", "min": 0},
    )
    importance_cap: float = field(
        default=0.0,
        metadata={
            "help": "Upper bound of the truncated importance weight learner/engine on each token; 0 = no weight.",
            "min": 0.0,
        },
    )


def policy_loss(name: str) -> Callable[[PolicyLoss], PolicyLoss]:
    """Register a policy loss under `learner.loss.name`."""

    def register(function: PolicyLoss) -> PolicyLoss:
        if name in POLICY_LOSSES:
            raise ValueError(f"policy loss {name!r} is registered twice")
        POLICY_LOSSES[name] = function
        return function

    return register


def find_policy_loss(name: str) -> PolicyLoss:
    """The registered loss.

    Raises:
        UserError: no loss of that name; the message lists those there are.
    """
    try:
        return POLICY_LOSSES[name]
    except KeyError:
        raise UserError(f"unknown policy loss {name!r}; known: {', '.join(sorted(POLICY_LOSSES))}") from None


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


@policy_loss("grpo")
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
        kl = kl_terms(new_logprobs, reference_logprobs, config.kl_estimator)
        sums["kl"] = kl.detach()
        terms = terms + config.kl_coef * kl
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


def sft_loss(new_logprobs: torch.Tensor, totals: BatchTotals) -> tuple[torch.Tensor, Metrics]:
    """Cross-entropy over reference tokens, averaged over all tokens of the whole batch.

    Args:
        new_logprobs: (T,) log-probs of the reference tokens, with gradient.
        totals: counts over the whole batch, all micro-batches and ranks.

    Returns:
        The contribution to the batch loss (scalar), and the metrics `nll` and `tokens`, both sums.
    """
    nll = -new_logprobs.sum()
    tokens = torch.tensor(float(len(new_logprobs)), dtype=torch.float64, device=nll.device)
    return nll / totals.tokens, {"nll": nll.detach().double(), "tokens": tokens}


def reduce_metrics(parts: Iterable[Mapping[str, torch.Tensor]]) -> Metrics:
    """Merge the metrics of micro-batches or ranks: names ending in `_max` by maximum, all others by sum."""
    merged: Metrics = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            else:
                merged[name] = torch.maximum(merged[name], value) if name.endswith("_max") else merged[name] + value
    return merged


def summarise_metrics(merged: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Merged sums over a batch → means per token, maxima, the number of tokens, and the effective sample size.

    Losses that count whole samples give `samples` in place of `tokens`, and get means per sample. Without a single
    one there are no means.

    `importance_ess` is (Σw)² / (n · Σw²) of the importance weights learner / engine, in (0, 1]: 1 when both agree on
    every token.
    """
    unit = "tokens" if "tokens" in merged else "samples"
    tokens = float(merged[unit])
    summary = {unit: tokens}
    if tokens == 0:
        return summary
    for name, value in merged.items():
        if name.endswith("_max"):
            summary[name] = float(value)
        elif name not in (unit, "importance_squared"):
            summary[name] = float(value) / tokens
    if "importance_squared" in merged:
        summary["importance_ess"] = float(merged["importance"]) ** 2 / (tokens * float(merged["importance_squared"]))
    return summary
