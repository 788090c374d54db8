"""Weights that stay on the device of their sender, where the engines of its node read them without a copy on the host.

On a GPU the handles are CUDA's (IPC). On a CPU the same code goes through shared memory of torch: no run chooses that,
but the whole life cycle can be tested with it, between real processes.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from speech.runtime.device_digest import DeviceDigest, Seeds, draw_seeds
from speech.runtime.owned_folders import NOTES, SHARED_MEMORY, WEIGHTS, OwnedFolder, has_owner
from speech.runtime.weights import WeightBucket

ALIGNED = 256
"""Every tensor begins at a multiple of so many bytes, as in CUDA's own allocations."""
CHECK_TIMEOUT_S = 120.0
"""For another process to import torch, open a buffer and read it."""


@dataclass(frozen=True, slots=True)
class DeviceBucket:
    """A whole publication in a buffer on its sender's device. Plain data: vLLM's workers get it as it is.

    Attributes:
        node: hex id of the sender's node.
        lease: path of the file that a reader locks: see `Lease`.
        gpu: of the sender, as CUDA_VISIBLE_DEVICES names it; empty on a CPU.
        handle: torch's handle of the buffer, bytes in hex.
        seeds: of the digests.
        tensors: offset in the buffer in bytes, dtype and shape by name.
        digests: `DeviceDigest` of each tensor, computed by the sender before it copied them there.
    """

    node: str
    lease: str
    gpu: str
    handle: tuple[str | int, ...]
    seeds: Seeds
    tensors: Mapping[str, tuple[int, str, tuple[int, ...]]]
    digests: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, (_, _, shape) in self.tensors.items()}

    def read(self) -> WeightBucket:
        """The tensors themselves, verified, for an engine that cannot open them: on the sender's node, in a process
        that has not used a GPU.

        Raises:
            FileNotFoundError: the sender has given them up, or is gone.
            ValueError: naming a tensor whose digest differs.
        """
        if self.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        with Lease(self):
            opened = OpenedWeights(self, torch.device("cuda:0" if self.gpu else "cpu"))
            return WeightBucket.of({name: opened.verified(name).to("cpu", copy=True) for name in self.tensors})


class Lease:
    """Held by who reads a `DeviceBucket`: until it is closed, or its holder ends in whatever way, the sender changes
    nothing there."""

    def __init__(self, bucket: DeviceBucket) -> None:
        """
        Raises:
            FileNotFoundError: the sender has given these weights up, or is gone.
        """
        self._folder = Path(bucket.lease).parent
        self._descriptor = os.open(bucket.lease, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # Between the opening and the lock the sender may have given it up, or another process may have cleared it.
            given_up = not os.fstat(self._descriptor).st_nlink or self.is_broken
        except BlockingIOError:
            given_up = True
        if given_up:
            self.close()
            raise FileNotFoundError(f"{bucket.lease}: given up")

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_broken(self) -> bool:
        """Whether the sender's process is gone, and its memory with it."""
        return not has_owner(self._folder)

    def close(self) -> None:
        os.close(self._descriptor)


class OpenedWeights:
    """A `DeviceBucket` as another process sees it. Valid while its `Lease` is held."""

    def __init__(self, bucket: DeviceBucket, device: torch.device) -> None:
        """
        Args:
            device: of the reader. The GPU of the sender need not be visible here, but this one must be able to read it.

        Raises:
            RuntimeError: torch's, where the buffer cannot be opened.
        """
        self._bucket = bucket
        storage = _opened(bucket.handle, device)
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        self._digest = DeviceDigest(bucket.seeds, device)

    @property
    def names(self) -> list[str]:
        return list(self._bucket.tensors)

    def read(self, name: str) -> torch.Tensor:
        """A tensor, in the sender's memory: not to be written to, nor to be kept."""
        offset, dtype, shape = self._bucket.tensors[name]
        return _place(self._buffer, offset, getattr(torch, dtype), tuple(shape))

    def verified(self, name: str) -> torch.Tensor:
        """As `read`.

        Raises:
            ValueError: its digest is not the sender's.
        """
        tensor = self.read(name)
        if self._digest(tensor) != self._bucket.digests.get(name):
            raise ValueError(f"tensor {name} arrived changed: its digest differs from the sender's")
        return tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in this buffer, in the place of a copy."""
        return 0 <= tensor.data_ptr() - self._buffer.data_ptr() < len(self._buffer)


class DeviceStage:
    """A buffer on a device, in which one publication after another lies until the next one is to be written."""

    def __init__(self, node: str, size: int, device: torch.device) -> None:
        """
        Args:
            node: hex id of this node.
            size: from `staged_size`.

        Raises:
            RuntimeError: torch's: there is no room (torch.OutOfMemoryError), or such memory cannot be opened by others.
        """
        self._node, self._device = node, device
        self._buffer, self._handle = _shareable(size, device)
        self._gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""
        self._folder = OwnedFolder(WEIGHTS, SHARED_MEMORY)
        # Torch's file: the buffer itself on a CPU, on a GPU the counts of its readers. It would stay when this is
        # killed, as a rank is at the end of each run.
        file = SHARED_MEMORY / bytes.fromhex(str(self._handle[1 if device.type == "cpu" else 3])).decode().lstrip("/")
        with suppress(FileNotFoundError):
            (self._folder.path / NOTES).write_text(f"{file.stat().st_ino} {file.name}\n", encoding="utf-8")
        self._count = 0

    @property
    def size(self) -> int:
        return len(self._buffer)

    def reclaim(self) -> bool:
        """Give up the last publication: nobody begins to read it any more. False where somebody still reads it; it
        stays then, whole."""
        for lease in self._folder.path.glob("lease-*"):
            descriptor = os.open(lease, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lease.unlink()
            except BlockingIOError:
                return False
            finally:
                os.close(descriptor)
        return True

    def fill(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> DeviceBucket:
        """Put a publication in the place of what was reclaimed.

        Args:
            tensors: on the device of this object, one after the other; together no more than `size`.
        """
        seeds = draw_seeds()
        digest = DeviceDigest(seeds, self._device)
        places: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        digests, end = {}, 0
        for name, tensor in tensors:
            places[name] = (end, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            _place(self._buffer, end, tensor.dtype, tuple(tensor.shape)).copy_(tensor.detach())
            digests[name] = digest(tensor)
            end += _aligned(tensor.nbytes)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # readers do not wait for an event of this process
        self._count += 1
        lease = self._folder.path / f"lease-{self._count}"
        lease.touch()
        return DeviceBucket(self._node, str(lease), self._gpu, self._handle, seeds, places, digests)

    def check(self) -> None:
        """Let another process of this node read something here, once, before engines are told to.

        Raises:
            RuntimeError: it could not, or read something else; with its last words.
        """
        sample = torch.randint(0, 256, (min(self.size, 2**20),), dtype=torch.uint8, device=self._device)
        bucket = self.fill([("sample", sample)])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        command = [sys.executable, "-m", __name__]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(asdict(bucket)),
                env=environment,
                capture_output=True,
                text=True,
                timeout=CHECK_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"another process did not read the buffer within {CHECK_TIMEOUT_S:.0f} s") from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise RuntimeError(f"another process could not read the buffer: {lines[-1]}")

    def remove(self) -> None:
        """Who reads at this moment reads nothing that can be trusted, and its checks will say so."""
        self._folder.remove()


def staged_size(tensors: Iterable[int]) -> int:
    """Bytes of a buffer for tensors of so many bytes each."""
    return sum(_aligned(size) for size in tensors)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _place(buffer: torch.Tensor, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    size = math.prod(shape) * dtype.itemsize
    if offset + size > len(buffer):
        raise ValueError(f"a tensor of {size} bytes at {offset} does not fit a buffer of {len(buffer)}")
    return buffer[offset : offset + size].view(dtype).view(shape)


def _shareable(size: int, device: torch.device) -> tuple[torch.Tensor, tuple[str | int, ...]]:
    """A uint8 tensor that other processes can open, and the handle for them."""
    if device.type == "cpu":
        storage = torch.UntypedStorage._new_using_filename_cpu(size)
        manager, name, _ = storage._share_filename_cpu_()
        return torch.empty(0, dtype=torch.uint8).set_(storage), (manager.hex(), name.hex(), size)
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    _, handle, size, offset, counter, place, event, _ = buffer.untyped_storage()._share_cuda_()
    # torch counts one reader for each handle, and keeps the memory for ever when there is none. Here leases count them.
    torch.UntypedStorage._release_ipc_counter_cuda(counter, place)
    return buffer, (handle.hex(), size, offset, counter.hex(), place, event.hex())


def _opened(parts: tuple[Any, ...], device: torch.device) -> torch.UntypedStorage:
    if device.type == "cpu":
        manager, name, size = parts
        return torch.UntypedStorage._new_shared_filename_cpu(bytes.fromhex(manager), bytes.fromhex(name), size)
    handle, size, offset, counter, place, event = parts
    # On the reader's own device, whatever number the sender's has: CUDA maps memory of a GPU that is not visible here
    # too, if the two can read each other. Without an event: the sender has waited for its kernels.
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.init()
    return torch.UntypedStorage._new_shared_cuda(
        index, bytes.fromhex(handle), size, offset, bytes.fromhex(counter), place, bytes.fromhex(event), False
    )


if __name__ == "__main__":  # the other process of `DeviceStage.check`
    DeviceBucket(**json.load(sys.stdin)).read()
