"""Reading Hugging Face checkpoint folders part by part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from speech.errors import UserError


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Raise a `UserError` that names every file which a checkpoint folder lacks."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"model folder {folder} lacks {', '.join(missing)}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not. Pickled weights are refused: data must not run code."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        require_files(folder, names)
        return [folder / name for name in names]
    require_files(folder, ["model.safetensors"])
    return [folder / "model.safetensors"]


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
