"""What policy losses have in common: importance weight, KL, aggregation and metrics around a surrogate of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch

from learner.batches.batch import BatchTotals
from learner.config import LossConfig
from learner.losses.terms import MAX_LOG_RATIO, kl_terms, sums_to_come, token_weights
from learner.metrics import Metrics

PolicyLoss = Callable[..., tuple[torch.Tensor, Metrics]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The trained tokens of a micro-batch as a surrogate sees them.

    Attributes:
        new: (T,) log-probs of the policy that learns, with gradient.
        log_ratio: (T,) log π_new / π_old, with gradient.
        advantages: (T,) of each token: its response's, and what the token has of its own.
        sample_of: (T,) response of each token.
        sample_lengths: (S,) tokens of each response.
    """

    new: torch.Tensor
    log_ratio: torch.Tensor
    advantages: torch.Tensor
    sample_of: torch.Tensor
    sample_lengths: torch.Tensor

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """(T,) → (T,): at each token the mean over its response."""
        sums = torch.zeros(len(self.sample_lengths), dtype=values.dtype, device=values.device)
        means = sums.index_add(0, self.sample_of, values) / self.sample_lengths.to(values.dtype)
        return means[self.sample_of]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What is to be minimised, token by token.

    Attributes:
        terms: (T,) with gradient; without importance weight, KL and aggregation.
        ratio: (T,) the one that is clipped, for the metrics.
    """

    terms: torch.Tensor
    ratio: torch.Tensor


def policy_loss(of_samples: bool = False) -> Callable[[Callable[[Tokens, LossConfig], Surrogate]], PolicyLoss]:
    """A policy loss around a surrogate.

    Args:
        of_samples: the surrogate's ratio belongs to whole responses (their geometric mean), and so does the importance
            weight then.
    """

    def around(surrogate: Callable[[Tokens, LossConfig], Surrogate]) -> PolicyLoss:
        @wraps(surrogate)
        def loss(
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
            token_credit: torch.Tensor | None = None,
        ) -> tuple[torch.Tensor, Metrics]:
            """Source and surrogate: see the module. With truncated importance weight w = min(π_old / π_behaviour, cap):
            `Σ_t c_t · (w · surrogate + kl_coef · KL)`. The weight corrects for the engine's own numerics and for
            staleness; it carries no gradient. With `kl_in: reward` there is no such term: the advantage of a token is
            lower by `kl_coef · Σ_{u ≥ t} log π_old / π_ref`, without gradient.

            Args:
                new_logprobs: (T,) of the policy that learns, with gradient.
                old_logprobs: (T,) of the proximal policy: the policy before the first update on this batch. With a
                    single update per batch it equals `new_logprobs.detach()`, and no ratio is ever clipped.
                behaviour_logprobs: (T,) of the engine that sampled.
                reference_logprobs: (T,) of the frozen reference; needed when `kl_coef` > 0, otherwise the KL is only
                    logged.
                entropy: (T,) nats, for the metrics only.
                advantages: (S,) one per response.
                sample_of: (T,) response of each token.
                sample_lengths: (S,) tokens of each response.
                totals: counts over the whole batch, all micro-batches and ranks.
                config: clip range, KL, aggregation, importance cap.
                token_credit: (T,) added to the advantage of each token; None adds nothing.

            Returns:
                The contribution to the batch loss (scalar), and its metrics (float64).

            Raises:
                ValueError: `kl_coef` > 0 without reference log-probs, or an unknown option.
            """
            if config.kl_coef > 0 and reference_logprobs is None:
                raise ValueError("kl_coef > 0 needs the log-probs of a reference policy")
            old, behaviour = old_logprobs.detach(), behaviour_logprobs.detach()
            advantage = advantages.to(new_logprobs.dtype)[sample_of]
            if token_credit is not None:
                advantage = advantage + token_credit.to(advantage.dtype)
            if reference_logprobs is not None and config.kl_in == "reward":
                distance = (old - reference_logprobs).detach()
                advantage = advantage - config.kl_coef * sums_to_come(distance, sample_lengths, sample_of)
            log_ratio = (new_logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            tokens = Tokens(new_logprobs, log_ratio, advantage, sample_of, sample_lengths)
            found = surrogate(tokens, config)
            terms, ratio = found.terms, found.ratio.detach()

            sums: Metrics = {}
            if config.importance_cap > 0:
                distance = tokens.mean(old - behaviour) if of_samples else old - behaviour
                weight = torch.exp(distance.clamp(max=MAX_LOG_RATIO))
                sums["importance_capped"] = weight > config.importance_cap
                terms = terms * weight.clamp(max=config.importance_cap)
            if reference_logprobs is not None:
                # The full KL is a term of its own: it needs more than the sampled tokens. Beside it k3 is logged alone.
                full = config.kl_estimator == "full"
                kl = kl_terms(new_logprobs, reference_logprobs, "k3" if full else config.kl_estimator)
                sums["kl"] = kl.detach()
                terms = terms if full or config.kl_in == "reward" else terms + config.kl_coef * kl
            total = (terms * token_weights(sample_of, sample_lengths, totals, config, terms.dtype)).sum()

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
            return total, metrics | {"logprob_gap_max": gap.max().double()}

        return loss

    return around


def clipped_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """(T,) −min(ρ·A, clip(ρ)·A) (PPO, 1707.06347 eq. 7)."""
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)
