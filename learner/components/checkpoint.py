"""Distributed checkpoints (DCP): every rank writes its shards, any number of ranks reads them back.

What is read is data: DCP pickles its metadata and every value that is no tensor, and unpickles them without a limit;
the reader and the planner here accept nothing but the records of DCP and plain values (docs/decisions/023).
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from learner.components.optimiser import full_tensor, local_tensor
from speech.errors import UserError

Export = Callable[[Path, dict[str, torch.Tensor]], None]
"""Writes a model in its own form to a folder."""

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
    """Writes one rank's part of checkpoints, beside the training: `begin` takes the state, a thread writes it.

    The thread's collectives have a process group of their own, so that they cannot mix with those of the training. Only
    one checkpoint is written at a time. Making a `Writer` and `begin` are collectives.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._mesh = DeviceMesh.from_group(self._group, "cpu")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def begin(self, folder: Path, policy: nn.Module, optimiser: Optimizer, export: Export, copy: bool) -> None:
        """Start to write the state as it is now.

        Args:
            folder: gets the shards in `dcp` and the export in `hf`; the caller makes its appearance atomic.
            export: writes the trained parameters, whole and by name; called on rank 0, in the thread. They are those of
                the copy, or the model's own: it must not keep or change them.
            copy: to host memory, so that training may go on. Without it the caller must change nothing until `done`.

        Raises:
            UserError: the checkpoint before this one was not written; see `done`.
        """
        self.wait()
        state = _state(policy, optimiser)
        if copy:
            state = self._copied(state, {})
        names = [name for name, p in policy.named_parameters() if p.requires_grad]
        self._writing = self._thread.submit(self._write, folder, state, names, export)

    def save(
        self,
        folder: Path,
        policy: nn.Module,
        optimiser: Optimizer,
        export: Export,
        background: bool = False,
        copy: bool = True,
    ) -> None:
        """Write a checkpoint: shards (DCP) in `folder/dcp`, and by `export` the model in its own form in `folder/hf`.

        Args:
            export: see `begin`.
            background: return before it is on the disk; `done` says when it is.
            copy: with `background`, see `begin`.

        Raises:
            UserError: the disk refuses, now or at the checkpoint before.
        """
        self.begin(folder, policy, optimiser, export, background and copy)
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

    def _write(self, folder: Path, state: dict[str, Any], names: list[str], export: Export) -> None:
        try:
            dcp.save(state, checkpoint_id=folder / "dcp", process_group=self._group)
            del state["optimiser"]  # a copy's memory, before the export needs its own
            tensors = self._gathered(state["policy"], names)
            if dist.get_rank(self._group) == 0:
                export(folder / "hf", tensors)
        except CheckpointException as error:  # a BaseException, which would end the thread's process under Ray
            causes = "; ".join(f"rank {rank}: {cause!r}" for rank, (cause, _) in sorted(error.failures.items()))
            raise _failure(folder, causes) from error
        except Exception as error:
            raise _failure(folder, _chain(error)) from error

    def _copied(self, value: Any, copies: dict[tuple[int, torch.Size], torch.Tensor]) -> Any:
        """A state dictionary with its tensors copied to host memory, each once: tied ones stay tied.

        Args:
            copies: those made so far, by the address and shape of the original.
        """
        if isinstance(value, dict):
            return {name: self._copied(item, copies) for name, item in value.items()}
        if isinstance(value, list):
            return [self._copied(item, copies) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        local = local_tensor(value)
        key = (local.data_ptr(), local.shape)
        if key not in copies:
            copies[key] = local.to("cpu", copy=True)
        return self._like(value, copies[key])

    def _gathered(self, tensors: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
        """Some tensors, whole and in host memory, on rank 0; the other ranks hold one at a time. A collective.

        A tensor that is whole and in host memory already is not copied.
        """
        found = {}
        for name in names:
            tensor = tensors[name]
            whole = full_tensor(self._like(tensor, local_tensor(tensor).cpu()))
            if dist.get_rank(self._group) == 0:
                found[name] = whole
        return found

    def _like(self, tensor: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        """A rank's part of a tensor in host memory, as a tensor of the writer's own group."""
        if not isinstance(tensor, DTensor):
            return local
        shape, stride = tensor.shape, tensor.stride()
        return DTensor.from_local(local, self._mesh, tensor.placements, run_check=False, shape=shape, stride=stride)


def _failure(folder: Path, causes: str) -> Exception:
    full = folder.is_dir() and shutil.disk_usage(folder).free < _FULL_BYTES
    if full or any(text in causes for text in _DISK):
        reason = "no space left" if full else causes
        return UserError(f"{folder}: cannot write the checkpoint: {reason}; the one before it is whole")
    return RuntimeError(f"{folder}: the checkpoint could not be written: {causes}")


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
    state = _state(policy, optimiser)
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
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )


def _state(policy: nn.Module, optimiser: Optimizer) -> dict[str, Any]:
    """What learns, and its moments, by name."""
    weights, moments = get_state_dict(policy, optimiser, options=StateDictOptions(ignore_frozen_params=True))
    # torch leaves out a frozen weight under the first of its names only: an output layer tied to the embedding stays.
    frozen = {name for name, p in policy.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {"policy": {name: t for name, t in weights.items() if name not in frozen}, "optimiser": moments}


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
