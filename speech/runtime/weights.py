"""Weights on their way from the learner to the engines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from blake3 import blake3


def tensor_digest(tensor: torch.Tensor) -> str:
    """BLAKE3 over dtype, shape and bytes of a tensor, so that both ends of a transfer can compare.

    In as many threads as torch may use here.
    """
    digest = blake3(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), max_threads=torch.get_num_threads())
    digest.update(bytes_of(tensor).data)
    return digest.hexdigest()


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """uint8 (bytes,), the tensor's own memory where it is on the CPU and contiguous."""
    flat: np.ndarray = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    return flat


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Some of the policy's tensors under the engine's names, with the sender's digests.

    Pickled, tensors are numpy arrays: Ray copies those into its object store once, and whoever gets them reads them
    there. It would copy a tensor three times.

    Attributes:
        tensors: full CPU tensors in the engine's dtype. Nobody may write to those that came through the object store.
        digests: `tensor_digest` of each, computed by the sender before serialisation.
    """

    tensors: Mapping[str, torch.Tensor]
    digests: Mapping[str, str]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> WeightBucket:
        """With the digests of these tensors."""
        return cls(tensors, {name: tensor_digest(tensor) for name, tensor in tensors.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        parts = {name: (bytes_of(t), t.dtype, tuple(t.shape)) for name, t in self.tensors.items()}
        return _bucket, (parts, dict(self.digests))


def _bucket(
    parts: Mapping[str, tuple[np.ndarray, torch.dtype, tuple[int, ...]]], digests: Mapping[str, str]
) -> WeightBucket:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = {
            name: torch.from_numpy(data).view(dtype).reshape(shape) for name, (data, dtype, shape) in parts.items()
        }
    return WeightBucket(tensors, digests)


@dataclass(frozen=True, slots=True)
class AdapterBucket(WeightBucket):
    """A whole LoRA adapter, to be published in the place of full weights.

    Attributes:
        tensors: float32, in peft's naming: `base_model.model.….q_proj.lora_A.weight` (r, in) and `lora_B.weight`
            (out, r).
        config: what adapter_config.json says: peft_type LORA, r, lora_alpha, target_modules, bias none.
    """

    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def pack(cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> AdapterBucket:
        """With the digests of these tensors."""
        return cls(tensors, WeightBucket.of(tensors).digests, config)

    def __reduce__(self) -> tuple[Any, ...]:
        return _adapter, (WeightBucket(self.tensors, self.digests), dict(self.config))


def _adapter(bucket: WeightBucket, config: Mapping[str, Any]) -> AdapterBucket:
    return AdapterBucket(bucket.tensors, bucket.digests, config)


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
