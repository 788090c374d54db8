"""Log-probs of sampled tokens, processed as the engine processes them, without a (T, V) tensor in memory."""

from __future__ import annotations

from collections.abc import Sequence
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
    stops: torch.Tensor | None = None
    early: torch.Tensor | None = None
    if min_new_tokens > 0 and stop_ids:
        if step_of is None:
            raise ValueError("min_new_tokens > 0 needs step_of")
        stops = torch.zeros(len(head_weight), dtype=torch.bool, device=hidden.device)
        stops[torch.tensor(list(stop_ids), device=hidden.device)] = True
        early = step_of < min_new_tokens
    _check_targets(targets, allowed, stops, early)

    # A single chunk holds no more memory between forward and backward than a recomputed one does in the backward.
    chunk_logprobs = _chunk_logprobs if len(targets) <= chunk else _recomputed
    logprobs, entropies = [], []
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        forbidden = _forbidden(allowed, stops, None if early is None else early[rows])
        selected, entropy = chunk_logprobs(hidden[rows], head_weight, targets[rows], forbidden, temperature)
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
    logits = torch.nn.functional.linear(hidden, head_weight).float()
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, float("-inf"))
    logits = logits / temperature
    selected = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
    # Last on purpose: the backward pass stops recomputing once it has what it needs, and it never needs this.
    with torch.no_grad():
        entropy = torch.special.entr(logits.softmax(1)).sum(1)
    return selected, entropy


# Nothing in a chunk is random, so there is no generator state worth saving.
_recomputed = partial(checkpoint, _chunk_logprobs, use_reentrant=False, preserve_rng_state=False)


def _forbidden(
    allowed: torch.Tensor | None, stops: torch.Tensor | None, early: torch.Tensor | None
) -> torch.Tensor | None:
    """Mask that broadcasts to (chunk, V), or None when every token may be drawn."""
    forbidden = None if allowed is None else ~allowed[None, :]
    if stops is not None and early is not None:
        too_soon = early[:, None] & stops[None, :]
        forbidden = too_soon if forbidden is None else forbidden | too_soon
    return forbidden


def _check_targets(
    targets: torch.Tensor, allowed: torch.Tensor | None, stops: torch.Tensor | None, early: torch.Tensor | None
) -> None:
    if allowed is not None and not bool(allowed[targets].all()):
        raise ValueError("a trained token is not among the allowed tokens: engine and learner masks differ")
    if stops is not None and early is not None and bool((stops[targets] & early).any()):
        raise ValueError("a response stops before min_new_tokens: engine and learner masks differ")
