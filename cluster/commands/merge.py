"""`speechrl merge`: a weighted sum of models of one form, such as exports of several runs.

The mean of fine-tuned models is a "model soup" (Wortsman et al. 2022, 2203.05482); with weights such as 1, 1, -1 the
sum is task arithmetic (Ilharco et al. 2023, 2212.04089).
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from speech.errors import UserError
from speech.families.checkpoint import new_folder, tensor_names
from speech.runtime.checkpoint_files import weight_files

ADAPTER = "adapter"
"""Folder of an export that belongs to one model alone."""


def run(args: argparse.Namespace) -> int:
    """Merge and say where it is. Returns 0.

    Raises:
        UserError: the models are not of one form, the weights are not one for each, or the output exists.
    """
    folders = [Path(model) for model in args.models]
    weights = args.weights or [1 / len(folders)] * len(folders)
    count = merge(folders, weights, Path(args.out))
    terms = " + ".join(f"{weight:g} · {folder}" for weight, folder in zip(weights, folders, strict=True))
    Console().print(f"{args.out}: {count} tensors, each {terms}", highlight=False, soft_wrap=True)
    return 0


def merge(folders: Sequence[Path], weights: Sequence[float], out: Path) -> int:
    """Write Σ wᵢ · modelᵢ, summed in float32, in the types and with the other files of the first.

    One weight file of the first is in memory at a time, and one tensor of each other.

    Returns:
        How many tensors there are.

    Raises:
        UserError: see `run`.
    """
    if len(folders) < 2 or len(weights) != len(folders):
        raise UserError(
            f"merge: {len(weights)} weights for {len(folders)} models; give two models or more, one for each"
        )
    if not all(map(math.isfinite, weights)):
        raise UserError("merge: a weight is not a finite number")
    for folder in folders:
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} keeps an adapter of its own beside its weights, which cannot be added up")
    places = [tensor_names(folder) for folder in folders]
    for folder, found in zip(folders, places, strict=True):
        if different := found.keys() ^ places[0].keys():
            raise UserError(f"{folder} is of another form than {folders[0]}: only one of them has {min(different)}")
    with new_folder(out) as partial:
        files = weight_files(folders[0])
        for file in files:
            tensors = {name: _sum(name, places, weights) for name, path in places[0].items() if path == file}
            save_file(tensors, partial / file.name, metadata={"format": "pt"})
        for item in folders[0].iterdir():
            if item.is_dir() and item.name != ADAPTER:
                shutil.copytree(item, partial / item.name)
            elif item.is_file() and item not in files:
                shutil.copyfile(item, partial / item.name)
    return len(places[0])


def _sum(name: str, places: Sequence[Mapping[str, Path]], weights: Sequence[float]) -> torch.Tensor:
    first = _read(places[0], name)
    total = weights[0] * first.float()
    for place, weight in zip(places[1:], weights[1:], strict=True):
        tensor = _read(place, name)
        if tensor.shape != first.shape:
            raise UserError(f"{place[name]}: {name} has shape {tuple(tensor.shape)}, not {tuple(first.shape)}")
        if not first.is_floating_point() and not torch.equal(tensor, first):
            raise UserError(f"{place[name]}: {name} holds whole numbers, and others than {places[0][name]}")
        total += weight * tensor.float()
    return total.to(first.dtype) if first.is_floating_point() else first


def _read(place: Mapping[str, Path], name: str) -> torch.Tensor:
    with safe_open(place[name], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
