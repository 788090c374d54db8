"""How weights go from the learner to the engines: chosen anew for each publication, without a key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from speech.runtime.device_weights import DeviceStage, staged_size
from speech.runtime.shared_weights import WeightFolder, fits_shared_memory

Transport = Literal["device memory", "shared memory", "object store"]
SPARE = 2 * 2**30
"""Bytes of a GPU that stay free beside a copy of the weights: for contexts of other processes and temporary tensors."""


@dataclass(frozen=True, slots=True)
class Receivers:
    """The engines that a publication is for.

    Attributes:
        nodes: hex ids of the nodes that they are on now.
        on_gpus: whether they compute on GPUs.
        take_back: share of a GPU that they fill again when it is their turn, where they share it with the learner.
    """

    nodes: Collection[str] = ()
    on_gpus: bool = False
    take_back: float = 0.0


NOBODY = Receivers()


@dataclass(frozen=True, slots=True)
class Gpu:
    """The device of rank 0.

    Attributes:
        total, free: bytes, as its driver counts.
        growth: bytes by which this process held more at its largest than it does now.
        has_learned: a step was made since the start, so that its largest is known.
        is_staged: the buffer for the weights is there already.
        is_read: an engine still reads the publication before, in that buffer.
        fault: why other processes cannot read a copy on this device, if that was found out.
    """

    total: int
    free: int
    growth: int = 0
    has_learned: bool = True
    is_staged: bool = False
    is_read: bool = False
    fault: str = ""


def choose(receivers: Receivers, node: str, size: int, gpu: Gpu | None, fits_host: bool) -> tuple[Transport, str]:
    """The transport of one publication, and why.

    Args:
        node: hex id of the node of rank 0.
        size: of the weights in bytes.
        gpu: None where rank 0 has none.
        fits_host: whether the shared memory of the node has room for them.
    """
    if not receivers.nodes:
        return "object store", "no engine runs yet"
    if set(receivers.nodes) != {node}:
        return "object store", "engines are on other nodes than rank 0 of the learner"
    against = _against_device(receivers, size, gpu)
    if against is None:
        return "device memory", "all engines are on GPUs of the node of rank 0, whose own has room for a copy"
    if fits_host:
        return "shared memory", f"all engines are on the node of rank 0; {against}"
    return "object store", f"{against}; the shared memory of the node has no room for {size / 1e9:.1f} GB"


def _against_device(receivers: Receivers, size: int, gpu: Gpu | None) -> str | None:
    if gpu is None or not receivers.on_gpus:
        return "learner and engines are not both on GPUs"
    if gpu.fault:
        return f"the GPU of rank 0 cannot share a copy: {gpu.fault}"
    if gpu.is_read:
        return "an engine still reads the weights before on the GPU of rank 0"
    if gpu.is_staged:
        return None
    if not gpu.has_learned:
        return "what a step needs on the GPU of rank 0 is not known before the first"
    room = gpu.free - gpu.growth
    if receivers.take_back:
        room = min(room, int(gpu.total * (1 - receivers.take_back)))
    if room - SPARE < size:
        return f"the GPU of rank 0 has {max(0, room - SPARE) / 1e9:.1f} GB to spare for {size / 1e9:.1f} GB"
    return None


class Outlet:
    """Where rank 0 puts its publications, one after another; late engines get the last one from there.

    Attributes:
        chosen: transport of the last publication, and why.
        folder: of the last publication, where it lies in shared memory.
        stage: the buffer on the device, as long as publications go through it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._fault = ""
        self._is_checked = False
        self.chosen: tuple[Transport, str] | None = None
        self.folder: WeightFolder | None = None
        self.stage: DeviceStage | None = None

    def begin(self, receivers: Receivers, node: str, sizes: Sequence[int], has_learned: bool) -> Transport:
        """Give up the last publication and make room for the next one.

        Args:
            node: hex id of this node.
            sizes: bytes of its tensors.
            has_learned: see `Gpu`.
        """
        self._close_folder()
        size, fits_host = staged_size(sizes), fits_shared_memory(sum(sizes))
        is_read = self.stage is not None and not self.stage.reclaim()
        if self.stage is not None and self.stage.size != size and not is_read:
            self._close_stage()
        chosen = choose(receivers, node, size, self._gpu(has_learned, is_read), fits_host)
        if chosen[0] == "device memory" and self.stage is None:
            try:
                self._open(node, size)
            except RuntimeError as error:
                self._fault = f"{error}".strip().splitlines()[0]
                chosen = choose(receivers, node, size, self._gpu(has_learned, is_read), fits_host)
        if chosen[0] != "device memory" and not is_read:
            self._close_stage()
        if chosen[0] == "shared memory":
            self.folder = WeightFolder(node)
        self.chosen = chosen
        return chosen[0]

    def close(self) -> None:
        self._close_folder()
        self._close_stage()

    def _gpu(self, has_learned: bool, is_read: bool) -> Gpu | None:
        if self._device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        growth = torch.cuda.max_memory_reserved(self._device) - torch.cuda.memory_reserved(self._device)
        return Gpu(total, free, growth, has_learned, self.stage is not None, is_read, self._fault)

    def _open(self, node: str, size: int) -> None:
        self.stage = DeviceStage(node, size, self._device)
        if not self._is_checked:
            try:
                self.stage.check()
                self.stage.reclaim()
            except RuntimeError:
                self._close_stage()
                raise
            self._is_checked = True

    def _close_folder(self) -> None:
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.remove()

    def _close_stage(self) -> None:
        stage, self.stage = self.stage, None
        if stage is not None:
            stage.remove()
