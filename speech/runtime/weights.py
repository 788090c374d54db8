"""Weights on their way from the learner to the engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from blake3 import blake3


def tensor_digest(tensor: torch.Tensor) -> str:
    """BLAKE3 over dtype, shape and bytes of a tensor, so that both ends of a transfer can compare.

    In as many threads as torch may use here.
    """
    flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    digest = blake3(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), max_threads=torch.get_num_threads())
    digest.update(flat.numpy().data)
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
    """Token sequences and what the published weights say of them: the proof that an engine computes with these weights.

    Attributes:
        sequences: token ids.
        logprobs: log P(ids[i] | ids[:i]) for i ≥ 1 of each sequence in turn, at temperature 1 without masks: the
            weights in the engine's dtype, computed with in float32.
        noise: mean |Δ| in nats to be expected of an engine that computes with these weights in its own precision.
        tolerance: largest mean |Δ| in nats that still counts as the same weights.
        previous: the same as `logprobs`, of the weights that were published before, for as many of the first of them as
            it is known for.
    """

    sequences: tuple[tuple[int, ...], ...]
    logprobs: tuple[float, ...]
    noise: float
    tolerance: float
    previous: tuple[float, ...] = ()
