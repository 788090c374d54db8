"""Distributed checkpoints (DCP): every rank writes its shards, any number of ranks reads them back.

What is read is data: DCP pickles its metadata and every value that is no tensor, and unpickles them without a limit;
the reader and the planner here accept nothing but the records of DCP and plain values (docs/decisions/023).
"""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from speech.errors import UserError

_DISK = (
    "No space left",
    "os error 28",
    "Read-only file system",
    "os error 30",
    "Disk quota exceeded",
    "File too large",
)
"""What safetensors, torch and the operating system say when the disk is at fault."""

_FULL_BYTES = 2**20
"""A disk with less is full. torch does not always say so: its archive writer hides the disk's error behind its own."""

_METADATA_CLASSES = {
    "torch": {"Size", "device"}
    | {str(d).removeprefix("torch.") for d in vars(torch).values() if type(d) is torch.dtype},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}
"""What `.metadata` may name, by module."""


class Writer:
    """Writes one rank's part of checkpoints, beside the training: `begin` copies the state, a thread writes the copy.

    The thread's collectives have a process group of their own, so that they cannot mix with those of the training. Only
    one checkpoint is written at a time. Making a `Writer` and `begin` are collectives.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def begin(
        self, folder: Path, policy: nn.Module, optimiser: Optimizer, then: Callable[[], None] | None = None
    ) -> None:
        """Take the state as it is now and start to write it.

        Args:
            folder: for the shards; the caller makes its appearance atomic.
            then: what the thread does next, for instance to write an export. No collective.

        Raises:
            UserError: the checkpoint before this one was not written; see `done`.
        """
        self.wait()
        options = StateDictOptions(ignore_frozen_params=True, cpu_offload=True)
        weights, moments = get_state_dict(policy, optimiser, options=options)
        # On a CPU nothing was copied yet, and the next update would change what is being written.
        state = copy.deepcopy({"policy": weights, "optimiser": moments})
        self._writing = self._thread.submit(_write, folder, state, self._group, then)

    def save(
        self,
        folder: Path,
        policy: nn.Module,
        optimiser: Optimizer,
        export: Callable[[Path], None] | None,
        background: bool,
    ) -> None:
        """Write a checkpoint: shards (DCP) in `folder/dcp`, and by `export` the model in its own form in `folder/hf`.

        Args:
            export: where this rank exports; None elsewhere. It must hold copies: training goes on meanwhile.
            background: return as soon as the state is copied; `done` says when it is on the disk.

        Raises:
            UserError: the disk refuses, now or at the checkpoint before.
        """
        self.begin(folder / "dcp", policy, optimiser, None if export is None else partial(export, folder / "hf"))
        if not background:
            self.wait()
            dist.barrier()

    def done(self) -> bool:
        """Whether nothing is being written any more. Does not wait.

        Raises:
            UserError: the disk refused.
        """
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()
        return self._writing is None

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            UserError: the disk refused.
        """
        if self._writing is not None:
            self._writing.exception()
        self.done()

    def close(self) -> None:
        self._thread.shutdown()


def _write(folder: Path, state: dict[str, Any], group: dist.ProcessGroup, then: Callable[[], None] | None) -> None:
    try:
        dcp.save(state, checkpoint_id=folder, process_group=group)
        if then is not None:
            then()
    except CheckpointException as error:  # a BaseException, which would end the thread's process under Ray
        causes = "; ".join(f"rank {rank}: {cause!r}" for rank, (cause, _) in sorted(error.failures.items()))
        raise _failure(folder, causes) from error
    except Exception as error:
        raise _failure(folder, _chain(error)) from error


def _failure(folder: Path, causes: str) -> Exception:
    full = folder.parent.is_dir() and shutil.disk_usage(folder.parent).free < _FULL_BYTES
    if full or any(text in causes for text in _DISK):
        reason = "no space left" if full else causes
        return UserError(f"{folder.parent}: cannot write the checkpoint: {reason}; the one before it is whole")
    return RuntimeError(f"{folder.parent}: the checkpoint could not be written: {causes}")


def _chain(error: BaseException | None) -> str:
    """An error and what caused it."""
    texts = []
    while error is not None:
        texts.append(repr(error))
        error = error.__cause__ or error.__context__
    return ", because of ".join(texts)


def load(folder: Path, policy: nn.Module, optimiser: Optimizer) -> None:
    """Read what a `Writer` wrote, resharding if the number of ranks changed. A collective.

    Raises:
        UserError: the files are damaged, or hold what no checkpoint of ours does.
    """
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    weights, moments = get_state_dict(policy, optimiser, options=options)
    state = {"policy": weights, "optimiser": moments}
    try:
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())
    except CheckpointException as error:
        causes = "; ".join(f"rank {rank}: {cause!r}" for rank, (cause, _) in sorted(error.failures.items()))
        raise UserError(f"{folder}: cannot be read as a checkpoint: {causes}") from error
    set_state_dict(
        policy,
        optimiser,
        model_state_dict=state["policy"],
        optim_state_dict=state["optimiser"],
        options=options,
    )


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"the metadata of a checkpoint may not name {module}.{name}")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """DCP's reader, but for metadata that could name any function of any module."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self._get_metadata_path(kwargs.get("rank"))).open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        for info in metadata.storage_data.values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"the metadata names {info.relative_path!r}, outside the checkpoint")
        return metadata


class _Planner(DefaultLoadPlanner):
    """DCP's planner, but for values that are no tensors: plain ones only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        allowed = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), allowed)  # what passed is safe for DCP to load
        allowed.seek(0)
        super().load_bytes(read_item, allowed)
