"""The sampler's settings: how logits become the distribution that is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """How logits become the distribution that is sampled; the engine and the learner must agree on it.

    Attributes:
        temperature: > 0.
        min_new_tokens: positions at the start of a response where `stop_ids` cannot be drawn.
        stop_ids: ids that end a response.
        allowed_token_ids: the only ids that can be drawn, stop ids included; None for all. vLLM's
            `allowed_token_ids`.
    """

    temperature: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None

    def allowed_mask(self, vocabulary: int, device: torch.device) -> torch.Tensor | None:
        """`allowed_token_ids` as (V,) bool over the rows of the output layer, or None when all are allowed."""
        if self.allowed_token_ids is None:
            return None
        mask = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        mask[torch.tensor(self.allowed_token_ids, device=device)] = True
        return mask
