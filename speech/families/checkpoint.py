"""Reading Hugging Face checkpoint folders part by part."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from speech.errors import UserError
from speech.runtime.checkpoint_files import weight_files


def read_tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors whose name starts with `prefix`, the prefix removed; nothing else is read from disk.

    Raises:
        UserError: a file is missing or damaged, or no tensor has the prefix.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                    if name.startswith(prefix):
                        tensors[name[len(prefix) :]] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged weights ({error})") from error
    if not tensors:
        raise UserError(f"model folder {folder}: no weights named {prefix}*")
    return tensors


def tensor_names(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor of a checkpoint; only headers are read.

    Raises:
        UserError: a file is missing or damaged.
    """
    places: dict[str, Path] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged weights ({error})") from error
    return places


@dataclass(frozen=True, slots=True)
class LowRank:
    """What LoRA adds to a stored weight (Hu et al. 2021, 2106.09685, §4.1), in the place of a whole new one.

    Attributes:
        a, b: (r, in) and (out, r).
        factor: of B·A.
    """

    a: torch.Tensor
    b: torch.Tensor
    factor: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight, (out, in)."""
        return len(self.b), self.a.shape[1]

    def plus(self, other: LowRank) -> LowRank:
        """Both in one, of the sum of the ranks."""
        b = torch.cat([self.factor * self.b.float(), other.factor * other.b.float()], 1)
        return LowRank(torch.cat([self.a.float(), other.a.float()]), b, 1.0)


def replaced(old: torch.Tensor, new: torch.Tensor | LowRank) -> torch.Tensor:
    """What stands in the place of a stored weight, in its type; a product is added in float32."""
    if isinstance(new, LowRank):
        new = old.float() + new.factor * (new.b.float() @ new.a.float())
    return new.to(old.dtype)


def rewrite_weights(source: Path, target: Path, new: Mapping[str, torch.Tensor | LowRank]) -> None:
    """Copy the weights of a checkpoint file by file, under the same names, with some tensors replaced.

    A new tensor is cast to the type of the one that it replaces. One file is in memory at a time.

    Args:
        new: by the checkpoint's own names, all of which it has, in the shapes that they have.
    """
    for path in weight_files(source):
        tensors = load_file(path)
        for name in tensors.keys() & new.keys():
            tensors[name] = replaced(tensors[name], new[name]).contiguous()
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    copy_files(source, ["model.safetensors.index.json"], target)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write a checkpoint into, which appears under its name whole or not at all.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; an export never overwrites")
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():  # from an export that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def copy_files(source: Path, names: Iterable[str], target: Path) -> None:
    """Copy those of the named files that there are."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
