"""Log-probs of sampled tokens and KL of distributions, processed as the engine processes them, without a (T, V)
tensor in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def selected_logprobs(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    allowed: torch.Tensor | None = None,
    step_of: torch.Tensor | None = None,
    min_new_tokens: int = 0,
    stop_ids: Sequence[int] = (),
    chunk: int = 2048,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log P(target | context) and the entropy of each distribution, after temperature and token masks.

    The order of operations is the engine's: head in the model's dtype, then float32, masks, temperature, softmax.
    Logits exist for `chunk` rows at a time, in the forward and in the backward pass (they are recomputed there), so
    peak memory grows with chunk × V. `head_weight` must hold its values until the backward pass has run: under FSDP2
    the module that owns it must not be resharded after its forward.

    Args:
        hidden: (T, H) final hidden states, one per target.
        head_weight: (V, H) weight of the output layer.
        targets: (T,) token ids.
        temperature: the sampler's, > 0.
        allowed: (V,) bool, the engine's `allowed_token_ids`; None allows all.
        step_of: (T,) index of the target in its response; needed when `min_new_tokens` > 0.
        min_new_tokens: positions at the start of a response where the engine masks `stop_ids`.
        stop_ids: ids that end a response.
        chunk: rows whose logits are in memory at a time, ≥ 1.

    Returns:
        (logprobs (T,) with gradient, entropy (T,) without), both float32 and in nats.

    Raises:
        ValueError: a temperature or chunk out of range, `min_new_tokens` without `step_of`, or a target that the
            masks forbid (its log-prob would be −inf and poison every weight).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, not {temperature}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    masks = TokenMasks.build(len(head_weight), allowed, step_of, min_new_tokens, stop_ids)
    masks.check(targets)

    logprobs, entropies = [], []
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        selected, entropy = _SelectedLogprobs.apply(
            hidden[rows], head_weight, targets[rows], masks.at(rows), temperature
        )
        logprobs.append(selected)
        entropies.append(entropy)
    if not logprobs:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat(logprobs), torch.cat(entropies)


class _SelectedLogprobs(torch.autograd.Function):
    """One chunk. Between forward and backward only the normaliser is kept, not the logits.

    Autograd's own formulas, in the same order and to the same bits, but in as few passes over (T, V) as they take: for
    a small model each costs as much as a matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head_weight: torch.Tensor,
        targets: torch.Tensor,
        masks: TokenMasks,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = _processed_logits(hidden, head_weight, masks, temperature)
        chosen = logits.gather(1, targets[:, None])[:, 0]
        largest = logits.amax(1)
        below = logits.sub_(largest[:, None])
        weights = below.exp()
        total = weights.sum(1)
        normaliser = total.log() + largest
        entropy = total.log() - torch.linalg.vecdot(weights, below.clamp_(min=LEAST)) / total
        ctx.save_for_backward(hidden, head_weight, targets, normaliser)
        ctx.masks, ctx.temperature = masks, temperature
        ctx.mark_non_differentiable(entropy)
        return chosen - normaliser, entropy

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, head_weight, targets, normaliser = ctx.saved_tensors
        logits = _processed_logits(hidden, head_weight, ctx.masks, ctx.temperature)
        # d log P(target) / d logit = [is the target] − P.
        of_logits = logits.sub_(normaliser[:, None]).exp_().mul_(-gradient[:, None])
        of_logits.scatter_add_(1, targets[:, None], gradient[:, None])
        if ctx.temperature != 1.0:
            of_logits.div_(ctx.temperature)
        of_logits = of_logits.to(hidden.dtype)
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        of_hidden = of_logits.mm(head_weight) if needs_hidden else None
        of_head = of_logits.t().mm(hidden) if needs_head else None
        return of_hidden, of_head, None, None, None


def distribution_kl(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    reference_hidden: torch.Tensor,
    reference_head: torch.Tensor,
    masks: TokenMasks,
    temperature: float,
    chunk: int,
) -> torch.Tensor:
    """KL(π ‖ π_ref) of the distributions at every position, summed over the whole vocabulary.

    Exact where `kl_terms` estimates from the sampled token, at the price of the reference's logits beside the policy's
    (the KL of DiffRO, 2507.05911, in the token-level form of CosyVoice 3). Memory grows with chunk × V, as in
    `selected_logprobs`.

    Args:
        hidden, head_weight: (T, H) and (V, H) of the policy, with gradient.
        reference_hidden, reference_head: (T, H') and (V, H') of the frozen reference.
        masks: the sampler's; both distributions are of the tokens that may be drawn.
        temperature: the sampler's, for both.
        chunk: rows whose logits are in memory at a time, ≥ 1.

    Returns:
        (T,) in nats, at least 0.
    """
    chunk_kl = _chunk_kl if len(hidden) <= chunk else _recomputed_kl
    parts = [
        chunk_kl(hidden[rows], head_weight, reference_hidden[rows], reference_head, masks.at(rows), temperature)
        for rows in (slice(start, start + chunk) for start in range(0, len(hidden), chunk))
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _chunk_kl(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    reference_hidden: torch.Tensor,
    reference_head: torch.Tensor,
    masks: TokenMasks,
    temperature: float,
) -> torch.Tensor:
    logprobs = _processed_logits(hidden, head_weight, masks, temperature).log_softmax(1)
    with torch.no_grad():
        reference = _processed_logits(reference_hidden, reference_head, masks, temperature).log_softmax(1)
    difference = logprobs.clamp(min=LEAST) - reference.clamp(min=LEAST)
    return (logprobs.exp() * difference).sum(1)


# Nothing in a chunk is random, so there is no generator state worth saving.
_recomputed_kl = partial(checkpoint, _chunk_kl, use_reentrant=False, preserve_rng_state=False)


def _processed_logits(
    hidden: torch.Tensor, head_weight: torch.Tensor, masks: TokenMasks, temperature: float
) -> torch.Tensor:
    logits = masks.hide_(full_precision(torch.nn.functional.linear(hidden, head_weight)))
    return logits if temperature == 1.0 else logits / temperature


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision → float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


LEAST = -1e30
"""In place of −∞ where a product with a probability of 0 must be 0."""


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens may be drawn at which target.

    Attributes:
        hidden: (V,) float, 0 for the engine's `allowed_token_ids` and −∞ for others; None allows all.
        stops: (n,) ids that end a response; None when they may be drawn anywhere.
        early: (T,) bool, targets at which they may not; None like `stops`.
    """

    hidden: torch.Tensor | None
    stops: torch.Tensor | None
    early: torch.Tensor | None

    @classmethod
    def build(
        cls,
        vocabulary: int,
        allowed: torch.Tensor | None,
        step_of: torch.Tensor | None,
        min_new_tokens: int,
        stop_ids: Sequence[int],
    ) -> TokenMasks:
        """Masks from a sampler's settings, as `selected_logprobs` describes them.

        Raises:
            ValueError: `min_new_tokens` without `step_of`.
        """
        hidden = None
        if allowed is not None:
            hidden = torch.zeros(vocabulary, device=allowed.device).masked_fill_(~allowed, float("-inf"))
        if min_new_tokens < 1 or not stop_ids:
            return cls(hidden, None, None)
        if step_of is None:
            raise ValueError("min_new_tokens > 0 needs step_of")
        return cls(hidden, torch.tensor(list(stop_ids), device=step_of.device), step_of < min_new_tokens)

    def at(self, rows: slice) -> TokenMasks:
        """Those of some targets."""
        return self if self.early is None else replace(self, early=self.early[rows])

    def hide_(self, logits: torch.Tensor) -> torch.Tensor:
        """Hide tokens that may not be drawn, in logits (T, V), in place. Adding takes a third of what filling does."""
        if self.hidden is not None:
            logits = logits.add_(self.hidden)
        if self.stops is not None and self.early is not None:
            too_soon = torch.zeros_like(self.early, dtype=logits.dtype).masked_fill_(self.early, float("-inf"))
            logits = logits.index_add_(1, self.stops, too_soon[:, None].expand(-1, len(self.stops)))
        return logits

    def check(self, targets: torch.Tensor) -> None:
        """Raise ValueError when a target (T,) is one that the masks forbid."""
        if self.hidden is not None and bool(self.hidden[targets].any()):
            raise ValueError("a trained token is not among the allowed tokens: engine and learner masks differ")
        if self.stops is not None and bool((torch.isin(targets, self.stops) & self.early).any()):
            raise ValueError("a response stops before min_new_tokens: engine and learner masks differ")
