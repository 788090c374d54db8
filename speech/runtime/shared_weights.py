"""Weights in the shared memory of a node: written once, read by every engine there without another copy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from speech.runtime.device_weights import DeviceBucket
from speech.runtime.owned_folders import SHARED_MEMORY, WEIGHTS, OwnedFolder
from speech.runtime.weights import WeightBucket, bytes_of

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""As safetensors calls them."""


@dataclass(frozen=True, slots=True)
class SharedBucket:
    """A bucket that lies in a file on its sender's node.

    Attributes:
        node: hex id of that node.
        file: a safetensors file.
        digests: as in `WeightBucket`.
        shapes: of the tensors.
    """

    node: str
    file: Path
    digests: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    def link(self, folder: Path) -> Path:
        """Keep the file in a folder of the same memory, whatever the sender does to it; where it is then.

        Raises:
            FileNotFoundError: the sender has given it up already.
        """
        kept = folder / self.file.name
        os.link(self.file, kept)
        return kept

    def read(self) -> WeightBucket:
        """The tensors themselves, on the sender's node, to be sent to another one."""
        return WeightBucket(load_file(self.file), self.digests)


Bucket = WeightBucket | SharedBucket | DeviceBucket


class WeightFolder:
    """The buckets of one publication, as long as its sender keeps them."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._folder = OwnedFolder(WEIGHTS, SHARED_MEMORY)
        self._count = 0

    def add(self, bucket: WeightBucket) -> SharedBucket:
        self._count += 1
        file = self._folder.path / f"{self._count}.safetensors"
        write_tensors(file, bucket.tensors)
        return SharedBucket(self._node, file, bucket.digests, bucket.shapes)

    def remove(self) -> None:
        """Engines that have begun to load keep what they have linked."""
        self._folder.remove()


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
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


def fits_shared_memory(size: int) -> bool:
    """Whether so many bytes fit, with as much again to spare for Ray's own object store."""
    return SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
