"""What an engine does with a publication before it loads it: buckets → files that its workers can map.

Buckets that came through Ray's object store are written; those in the shared memory of this node are there already.
Weights on the device of the learner stay there, under a lease.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.errors import EngineLostError, PublicationError, RefusedError, WeightsLostError, listed, within
from rollout.weights.adapter import check_adapter
from rollout.weights.shapes import shape_faults
from speech.runtime.device_weights import DeviceBucket, Lease
from speech.runtime.owned_folders import SHARED_MEMORY, WEIGHTS, OwnedFolder
from speech.runtime.shared_weights import Bucket, SharedBucket, fits_shared_memory, write_tensors
from speech.runtime.weights import AdapterBucket, WeightBucket


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """A whole publication on disk, or on the learner's device.

    Attributes:
        files: safetensors files, one per bucket, in the sender's order.
        digests: `tensor_digest` by tensor name, as computed by the sender.
        adapter: adapter_config.json, where the publication is an adapter in the place of full weights.
        device: the publication, where it is on the learner's device. There are no files then.
    """

    files: tuple[Path, ...]
    digests: Mapping[str, str]
    adapter: Mapping[str, Any] | None = None
    device: DeviceBucket | None = None


@asynccontextmanager
async def staged(
    buckets: Iterable[Bucket], expected: Mapping[str, tuple[int, ...]], timeout_s: float, lora_rank: int = 0
) -> AsyncIterator[StagedWeights]:
    """Write buckets one at a time to shared memory (or to a temporary folder when it is full) and remove them after.
    Those that lie in this node's shared memory are not written again.

    All of them are staged before the first is loaded, so that nothing reaches the model unless everything arrived.

    Args:
        buckets: consumed in a thread; may block (for instance on Ray's object store).
        expected: shape by name of every tensor that the engine's checkpoint holds.
        lora_rank: largest rank of an adapter; with one, nothing but adapters is taken.

    Raises:
        PublicationError: names or shapes differ from `expected`.
        RefusedError: an adapter does not fit, or full weights came to an engine that takes adapters.
        WeightsLostError: the sender has given up a bucket in shared memory or on its device, and has a newer
            publication; or it ended while its device was read.
        PhaseTimeoutError: after `timeout_s`; the thread then stops before its next bucket.
    """
    with _Stage() as stage:
        await within(timeout_s, "staging the weights", asyncio.to_thread(stage.write, buckets))
        if stage.adapter is None:
            if lora_rank:
                # The next adapter would lie on other weights than those that it was trained over.
                raise RefusedError("an engine with engines.lora_rank takes adapters alone, not full weights")
            # vLLM finds a wrong name only after it has emptied the model, and cannot go back from there.
            if faults := shape_faults(stage.shapes, expected):
                raise PublicationError(f"the tensors sent are not those of the engine's model: {listed(faults)}")
        else:
            check_adapter(stage.shapes, stage.adapter, expected, lora_rank)
        try:
            yield StagedWeights(tuple(stage.files), stage.digests, stage.adapter, stage.device)
        except EngineLostError:
            raise
        except Exception as error:
            if stage.lease is not None and stage.lease.is_broken:
                raise WeightsLostError("the learner ended while its weights were read from its device") from error
            raise


class _Stage:
    """Folders of one publication, or the lease on it."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.digests: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.adapter: Mapping[str, Any] | None = None
        self.device: DeviceBucket | None = None
        self.lease: Lease | None = None
        self._folders: list[OwnedFolder] = []
        self._guard = threading.Lock()
        self._closed = False

    def __enter__(self) -> _Stage:
        return self

    def write(self, buckets: Iterable[Bucket]) -> None:
        for bucket in buckets:
            with self._guard:
                if self._closed:
                    return
                self._write_one(bucket)

    def _write_one(self, bucket: Bucket) -> None:
        try:
            if isinstance(bucket, DeviceBucket):
                self.device, self.lease = bucket, Lease(bucket)
            elif isinstance(bucket, SharedBucket):
                self._folders.append(OwnedFolder(WEIGHTS, SHARED_MEMORY))
                self.files.append(bucket.link(self._folders[-1].path))
        except FileNotFoundError as error:
            raise WeightsLostError("the learner has given up these weights for newer ones") from error
        if isinstance(bucket, WeightBucket):
            size = sum(tensor.nbytes for tensor in bucket.tensors.values())
            self._folders.append(OwnedFolder(WEIGHTS, SHARED_MEMORY if fits_shared_memory(size) else None))
            self.files.append(self._folders[-1].path / "weights.safetensors")
            write_tensors(self.files[-1], bucket.tensors)
            if isinstance(bucket, AdapterBucket):
                self.adapter = bucket.config
        self.digests.update(bucket.digests)
        self.shapes.update(bucket.shapes)

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._closed = True
            for folder in self._folders:
                folder.remove()
            if self.lease is not None:
                self.lease.close()
