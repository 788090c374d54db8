"""The receiver's half of an adapter-only publication. Runs inside vLLM's workers, as an extension of their class.

vLLM would read an adapter from a folder, and again whenever it has dropped it. Here it is made from the very tensors
whose digests were checked, and the engine has one slot, from which nothing is ever evicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open

from rollout.errors import listed
from rollout.weights.held import same_bits
from speech.runtime.weights import tensor_digest

ADAPTER_ID = 1
"""vLLM's number of the only adapter. Its slot holds zeros until the first publication."""

Pair = dict[str, torch.Tensor]
"""The matrices "A" (rank, in) and "B" (out, rank) of one module."""


class AdapterWorker:
    """Methods that vLLM adds to its worker class, for the engine to call by name."""

    _received: tuple[Any, dict[str, Pair], float] | None = None

    def receive_adapter(self, files: list[str], digests: Mapping[str, str], config: Mapping[str, Any]) -> None:
        """Read an adapter and verify it, beside the one that is served.

        Raises:
            ValueError: naming a tensor whose digest differs, or a module that vLLM computes without adapters.
        """
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper
        from vllm.lora.utils import parse_fine_tuned_lora_name

        self._received = None
        manager = _manager(self)
        tensors: dict[str, torch.Tensor] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
        for name, tensor in tensors.items():
            if tensor_digest(tensor) != digests.get(name):
                raise ValueError(f"tensor {name} arrived changed: its digest differs from the sender's")
        mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
        mapper = None if mapper is None else mapper.get_rename_mapper()
        pairs: dict[str, Pair] = {}
        for name, tensor in tensors.items():
            module, is_a = parse_fine_tuned_lora_name(name, mapper)
            pairs.setdefault(module, {})["A" if is_a else "B"] = tensor
        unknown = pairs.keys() - {part for _, parts in _places(manager) for part in parts}
        if unknown:
            raise ValueError(f"vLLM computes these modules without adapters: {listed(sorted(unknown))}")
        helper = PEFTHelper.from_dict(dict(config))
        helper.validate_legal(manager.lora_config)
        copies = {name: tensor.clone() for name, tensor in tensors.items()}  # vLLM scales its own in place
        dtype = manager.lora_config.lora_dtype
        adapter = LoRAModel.from_lora_tensors(ADAPTER_ID, copies, helper, "cpu", dtype, weights_mapper=mapper)
        self._received = adapter, pairs, config["lora_alpha"] / config["r"]

    def load_adapter(self) -> None:
        """Put what was received into the place of the adapter that is served, and compare what is held then.

        Raises:
            ValueError: naming matrices that do not hold what was sent.
        """
        if self._received is None:
            raise ValueError("no adapter was received")
        received, self._received = self._received, None
        _activate(_manager(self), *received)

    def clear_adapter(self) -> None:
        """Serve the base alone: an adapter of zeros."""
        self._received = None
        manager = _manager(self)
        # What vLLM warms up with; it takes none without any matrix.
        zeros = manager.create_dummy_lora(ADAPTER_ID, 1, manager.model.embedding_modules)
        _activate(manager, zeros, {}, 1.0)


def _manager(worker: Any) -> Any:
    return worker.get_model().lora_manager


def _places(manager: Any) -> Iterator[tuple[Any, list[str]]]:
    """vLLM's linear layers with adapters, each with the modules of the checkpoint that are fused in it."""
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    for name, layer in manager.modules.items():
        if isinstance(layer, BaseLinearLayerWithLoRA):
            yield layer, manager.packed_modules.get(name, [name])


def _activate(manager: Any, adapter: Any, pairs: Mapping[str, Pair], scaling: float) -> None:
    manager.remove_adapter(ADAPTER_ID)
    manager.add_adapter(adapter)
    manager.activate_adapter(ADAPTER_ID)
    slot = manager.lora_index_to_id.index(ADAPTER_ID)
    faults = [fault for layer, parts in _places(manager) for fault in _differences(layer, parts, slot, pairs, scaling)]
    if faults:
        raise ValueError(f"the engine does not hold the adapter that was sent: {listed(faults)}")


def _differences(layer: Any, parts: list[str], slot: int, pairs: Mapping[str, Pair], scaling: float) -> Iterator[str]:
    """What a layer's buffers hold, against the sent matrices: B scaled, this rank's part, zeros around them."""
    if len(parts) != len(layer.lora_a_stacked):
        yield from (f"{part} is fused in a way that cannot be compared" for part in parts if part in pairs)
        return
    dtype = layer.lora_a_stacked[0].dtype
    sent: dict[str, list[torch.Tensor | None]] = {
        "A": [pairs[part]["A"].to(dtype) if part in pairs else None for part in parts],
        "B": [pairs[part]["B"].to(dtype) * scaling if part in pairs else None for part in parts],
    }
    if layer.tp_size > 1:
        for which, cut in (("A", layer.slice_lora_a), ("B", layer.slice_lora_b)):
            if len(parts) > 1:
                sent[which] = cut(sent[which])
            elif sent[which][0] is not None:
                sent[which] = [cut(sent[which][0])]
    for which, stacked in (("A", layer.lora_a_stacked), ("B", layer.lora_b_stacked)):
        for part, matrix, buffer in zip(parts, sent[which], stacked, strict=True):
            expected = torch.zeros_like(buffer[slot, 0], device="cpu")
            if matrix is not None:
                expected[: matrix.shape[0], : matrix.shape[1]] = matrix
            if not same_bits(buffer[slot, 0].cpu(), expected):
                yield f"{part}.lora_{which} does not hold what was sent"
