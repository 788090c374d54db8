"""Weights on their way from the learner to the engines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor, so that both ends of a transfer can compare."""
    flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(flat.numpy())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Some of the policy's tensors under the engine's names, with the sender's digests.

    Attributes:
        tensors: full CPU tensors in the engine's dtype.
        digests: `tensor_digest` of each, computed by the sender before serialisation.
    """

    tensors: Mapping[str, torch.Tensor]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Probe:
    """A fixed token sequence and the policy's log-probs on it: the proof that a publication arrived.

    Attributes:
        token_ids: the sequence.
        logprobs: log P(token_ids[i] | token_ids[:i]) at temperature 1 without masks, for i ≥ 1.
        tolerance: largest |Δ| in nats that still counts as the same weights.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tolerance: float
