"""Log-probs of sampled tokens and KL of distributions, processed as the engine processes them, without a (T, V)
tensor in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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

    # A single chunk holds no more memory between forward and backward than a recomputed one does in the backward.
    chunk_logprobs = _chunk_logprobs if len(targets) <= chunk else _recomputed
    logprobs, entropies = [], []
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        selected, entropy = chunk_logprobs(hidden[rows], head_weight, targets[rows], masks.forbidden(rows), temperature)
        logprobs.append(selected)
        entropies.append(entropy)
    if not logprobs:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    targets: torch.Tensor,
    forbidden: torch.Tensor | None,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = _processed_logits(hidden, head_weight, forbidden, temperature)
    selected = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
    # Last on purpose: the backward pass stops recomputing once it has what it needs, and it never needs this.
    with torch.no_grad():
        entropy = torch.special.entr(logits.softmax(1)).sum(1)
    return selected, entropy


# Nothing in a chunk is random, so there is no generator state worth saving.
_recomputed = partial(checkpoint, _chunk_logprobs, use_reentrant=False, preserve_rng_state=False)


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
        chunk_kl(hidden[rows], head_weight, reference_hidden[rows], reference_head, masks.forbidden(rows), temperature)
        for rows in (slice(start, start + chunk) for start in range(0, len(hidden), chunk))
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _chunk_kl(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    reference_hidden: torch.Tensor,
    reference_head: torch.Tensor,
    forbidden: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    logprobs = _processed_logits(hidden, head_weight, forbidden, temperature).log_softmax(1)
    with torch.no_grad():
        reference = _processed_logits(reference_hidden, reference_head, forbidden, temperature).log_softmax(1)
    difference = logprobs - reference
    if forbidden is not None:
        difference = difference.masked_fill(forbidden, 0.0)  # −∞ − (−∞)
    return (logprobs.exp() * difference).sum(1)


_recomputed_kl = partial(checkpoint, _chunk_kl, use_reentrant=False, preserve_rng_state=False)


def _processed_logits(
    hidden: torch.Tensor, head_weight: torch.Tensor, forbidden: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    logits = full_precision(torch.nn.functional.linear(hidden, head_weight))
    # A pass over (T, V) costs as much as the matrix product of a small model: none is made in vain.
    if forbidden is not None:
        logits = logits.masked_fill_(forbidden, float("-inf"))
    return logits if temperature == 1.0 else logits / temperature


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision → float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens may be drawn at which target.

    Attributes:
        allowed: (V,) bool, the engine's `allowed_token_ids`; None allows all.
        stops: (V,) bool, the ids that end a response; None when they may be drawn anywhere.
        early: (T,) bool, targets at which they may not; None like `stops`.
    """

    allowed: torch.Tensor | None
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
        if min_new_tokens < 1 or not stop_ids:
            return cls(allowed, None, None)
        if step_of is None:
            raise ValueError("min_new_tokens > 0 needs step_of")
        stops = torch.zeros(vocabulary, dtype=torch.bool, device=step_of.device)
        stops[torch.tensor(list(stop_ids), device=step_of.device)] = True
        return cls(allowed, stops, step_of < min_new_tokens)

    def forbidden(self, rows: slice) -> torch.Tensor | None:
        """Mask of some targets that broadcasts to (rows, V), or None when every token may be drawn."""
        forbidden = None if self.allowed is None else ~self.allowed[None, :]
        if self.stops is not None and self.early is not None:
            too_soon = self.early[rows][:, None] & self.stops[None, :]
            forbidden = too_soon if forbidden is None else forbidden | too_soon
        return forbidden

    def check(self, targets: torch.Tensor) -> None:
        """Raise ValueError when a target (T,) is one that the masks forbid."""
        if self.allowed is not None and not bool(self.allowed[targets].all()):
            raise ValueError("a trained token is not among the allowed tokens: engine and learner masks differ")
        if self.stops is not None and self.early is not None and bool((self.stops[targets] & self.early).any()):
            raise ValueError("a response stops before min_new_tokens: engine and learner masks differ")
