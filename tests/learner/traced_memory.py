"""Memory by the sizes of tensors, which unlike a process's does not depend on an allocator or on what else runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TracedMemory(TorchDispatchMode):
    """Bytes of the storages that operations inside the block made and that are still alive; also in backward passes.

    Tensors on the meta device count with the size that they would have. What a kernel needs for itself is not seen.

    Attributes:
        peak: the most that were alive after any operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                storage = _storage(leaf)
                if storage._cdata not in known | self._alive.keys():
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return found


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).untyped_storage()
