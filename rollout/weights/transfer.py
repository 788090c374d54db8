"""The receiver's half of the `object_store` transport: vLLM's worker loads staged files, verified first.

Runs inside vLLM's worker processes, which find it through the entry point group `vllm.general_plugins`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from speech.runtime.weights import tensor_digest

BACKEND = "object_store"
RELOAD_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: every update brings its own paths."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """One whole publication.

    Attributes:
        files: safetensors files with full tensors under the names of the checkpoint.
        digests: the sender's `tensor_digest` of each tensor.
    """

    files: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)


class ObjectStoreTransferEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads a publication through vLLM's layer-wise reload, but only once every digest has been checked."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """No connection to open."""

    def start_weight_update(self) -> None:
        """The reload starts in `receive_weights`: it empties the model, so it must come after the checks."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, which asks for an accelerator even where there is none."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        """Verify all tensors of all files, then load them.

        Raises:
            ValueError: naming the first tensor whose digest differs; the model is untouched.
        """
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        for name, tensor in _tensors(update_info.files):
            if tensor_digest(tensor) != update_info.digests.get(name):
                raise ValueError(f"tensor {name} arrived changed: its digest differs from the sender's")
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(_tensors(update_info.files))
        except BaseException:
            # Without this, layers that were not reached stay on the meta device and no later update can start.
            self.finish_weight_update()
            raise

    def finish_weight_update(self) -> None:
        """Give the layers their storage back and repair what the reload does not know of."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with _without_tied_head_warning():
            finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            refresh_packed_heads(self.model)

    def shutdown(self) -> None:
        """No connection to close."""


def _tensors(files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)


def refresh_packed_heads(model: torch.nn.Module) -> None:
    """Pack embeddings and output heads again from their current weights (CPU).

    On CPU a head multiplies with a packed copy of its weight. The reload packs again only the layers for which the
    checkpoint holds a tensor; a tied head has none, and would keep the copy of the old weights without any error.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


@contextmanager
def _without_tied_head_warning() -> Iterator[None]:
    """The reload warns "Failed to load weights" for a tied head at every publication. The sender has already
    compared all names with the checkpoint, so that the warning has nothing else to report."""
    logger = logging.getLogger(RELOAD_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
