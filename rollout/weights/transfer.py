"""The receiver's half of weight sync: vLLM's worker loads staged files, or a buffer on the learner's device, verified
first.

Runs inside vLLM's worker processes, which find it through the entry point group `vllm.general_plugins`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from rollout.errors import listed
from rollout.weights.held import check_held
from speech.runtime.device_weights import DeviceBucket, OpenedWeights
from speech.runtime.weights import tensor_digest

BACKEND = "object_store"
RELOAD_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Of weights on the learner's device, which are opened and verified before anything is paused. Files need nothing
    beforehand: every update brings its own paths.

    Attributes:
        device: a `DeviceBucket`.
    """

    device: dict[str, Any]


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """One whole publication.

    Attributes:
        files: safetensors files with full tensors under the names of the checkpoint.
        digests: the sender's `tensor_digest` of each tensor.
        opened: it is what was opened before, in the place of files.
    """

    files: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    opened: bool = False


class ObjectStoreTransferEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads a publication through vLLM's layer-wise reload: only once every digest has been checked, and whole."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    _opened: OpenedWeights | None = None

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """Open weights on the learner's device and verify them where this worker computes; the model is untouched.

        Raises:
            RuntimeError: torch's, where they cannot be opened.
            ValueError: naming the first tensor whose digest differs.
        """
        self._opened = None
        opened = OpenedWeights(DeviceBucket(**init_info.device), self.device)
        for name in opened.names:
            opened.verified(name)
        self._opened = opened

    def start_weight_update(self) -> None:
        """The reload starts in `receive_weights`: it empties the model, so it must come after the checks."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, which asks for an accelerator even where there is none."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        """Verify all tensors of all files, load them, and verify what the model holds then. What was opened is verified
        already, and once more when the model is compared with it: it is another process's memory.

        Raises:
            ValueError: naming the first tensor whose digest differs; the model is untouched. Or naming parameters that
                do not hold what was sent.
        """
        opened, self._opened = self._opened, None
        if update_info.opened:
            if opened is None:
                raise ValueError("no weights were opened")
            self._load(opened.names, opened.read)
            kept = [name for name, tensor in self.model.named_parameters() if opened.holds(tensor)]
            if kept:
                raise ValueError(f"the engine holds the learner's memory in the place of copies: {listed(kept)}")
            check_held(self.model, opened.names, opened.verified)
            return
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(file, framework="pt")) for file in update_info.files]
            file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping

            def read(name: str) -> torch.Tensor:
                tensor: torch.Tensor = file_of[name].get_tensor(name)
                return tensor

            for name in file_of:
                if tensor_digest(read(name)) != update_info.digests.get(name):
                    raise ValueError(f"tensor {name} arrived changed: its digest differs from the sender's")
            self._load(file_of, read)
            check_held(self.model, file_of, read)

    def _load(self, names: Iterable[str], read: Callable[[str], torch.Tensor]) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights((name, read(name)) for name in names)
        finally:
            # Without this, layers that were not reached stay on the meta device and no later update can start.
            self._finish()

    def _finish(self) -> None:
        """Give the layers their storage back and repair what the reload does not know of."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with _without_tied_head_warning():
            finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            refresh_packed_heads(self.model)

    def finish_weight_update(self) -> None:
        """The reload ends in `receive_weights`: vLLM can start no other update after an error here."""

    def shutdown(self) -> None:
        self._opened = None


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
    """The reload warns "Failed to load weights" for a tied head at every publication. `check_held` finds what the
    warning could report, and refuses it."""
    logger = logging.getLogger(RELOAD_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
