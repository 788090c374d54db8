"""The sender's half of the `object_store` transport: buckets → files that the engine's workers can map."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

from rollout.errors import PublicationError, within
from rollout.leftovers import WEIGHTS
from rollout.owned_folders import SHARED_MEMORY, OwnedFolder
from speech.runtime.weights import WeightBucket, bytes_of


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """A whole publication on disk.

    Attributes:
        files: safetensors files, one per bucket, in the sender's order.
        digests: `tensor_digest` by tensor name, as computed by the sender.
    """

    files: tuple[Path, ...]
    digests: Mapping[str, str]


@asynccontextmanager
async def staged(
    buckets: Iterable[WeightBucket], expected: Mapping[str, tuple[int, ...]], timeout_s: float
) -> AsyncIterator[StagedWeights]:
    """Write buckets one at a time to shared memory (or to a temporary folder when it is full) and remove them after.

    All of them are staged before the first is loaded, so that nothing reaches the model unless everything arrived.

    Args:
        buckets: consumed in a thread; may block (for instance on Ray's object store).
        expected: shape by name of every tensor that the engine's checkpoint holds.

    Raises:
        PublicationError: names or shapes differ from `expected`.
        PhaseTimeoutError: after `timeout_s`; the thread then stops before its next bucket.
    """
    with _Stage() as stage:
        await within(timeout_s, "staging the weights", asyncio.to_thread(stage.write, buckets))
        check_names(stage.shapes, expected)
        yield StagedWeights(tuple(stage.files), stage.digests)


class _Stage:
    """Folders of one publication."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.digests: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._folders: list[OwnedFolder] = []
        self._guard = threading.Lock()
        self._closed = False

    def __enter__(self) -> _Stage:
        return self

    def write(self, buckets: Iterable[WeightBucket]) -> None:
        for bucket in buckets:
            with self._guard:
                if self._closed:
                    return
                self._write_one(bucket)

    def _write_one(self, bucket: WeightBucket) -> None:
        size = sum(tensor.nbytes for tensor in bucket.tensors.values())
        folder = OwnedFolder(WEIGHTS, _room_for(size))
        self._folders.append(folder)
        self.files.append(folder.path / "weights.safetensors")
        _write(self.files[-1], bucket.tensors)
        self.digests.update(bucket.digests)
        self.shapes.update({name: tuple(tensor.shape) for name, tensor in bucket.tensors.items()})

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._closed = True
            for folder in self._folders:
                folder.remove()


_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""As safetensors calls them."""


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file, from the memory in which the tensors are. The library's own writer copies them before."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            out.write(bytes_of(tensor).data)


def _room_for(size: int) -> Path | None:
    """Shared memory when `size` bytes fit, with as much again to spare for Ray's own object store."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size:
        return SHARED_MEMORY
    return None


def check_names(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a publication with the checkpoint that the engine was started from.

    vLLM finds a wrong name only after it has emptied the model, and cannot go back from there.

    Raises:
        PublicationError: listing missing, unknown and misshapen tensors.
    """
    faults = [f"missing {name}" for name in sorted(expected.keys() - shapes.keys())]
    faults += [f"unknown {name}" for name in sorted(shapes.keys() - expected.keys())]
    faults += [
        f"{name} is {shapes[name]}, not {expected[name]}"
        for name in sorted(shapes.keys() & expected.keys())
        if shapes[name] != expected[name]
    ]
    if faults:
        shown = "; ".join(faults[:10]) + ("" if len(faults) <= 10 else f"; … and {len(faults) - 10} more")
        raise PublicationError(f"the tensors sent are not those of the engine's model: {shown}")


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor in a folder of safetensors files, read from their headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes
