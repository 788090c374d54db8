"""Names and shapes of tensors: what a checkpoint holds, and how what was sent differs from what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors

Shapes = Mapping[str, tuple[int, ...]]


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor in a folder of safetensors files, read from their headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def shape_faults(shapes: Shapes, expected: Shapes) -> list[str]:
    """What is missing, unknown or misshapen; empty when the two are equal."""
    faults = [f"missing {name}" for name in sorted(expected.keys() - shapes.keys())]
    faults += [f"unknown {name}" for name in sorted(shapes.keys() - expected.keys())]
    common = sorted(shapes.keys() & expected.keys())
    return faults + [f"{n} is {shapes[n]}, not {expected[n]}" for n in common if shapes[n] != expected[n]]
