"""Bad utterances of every kind that a manifest's check lets pass, mixed at random into good ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cluster.data.prompts import PromptSource
from speech.records import Utterance

RATE = 16_000
SPARE = 12
"""Prompts at the beginning of the data before which nothing vanishes: they are read before it does."""


def _tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def _cut(path: Path) -> None:
    soundfile.write(path, _tone(1.5), RATE, format="FLAC")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _corrupt(path: Path) -> None:
    soundfile.write(path, _tone(1.5), RATE, format="FLAC")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)


def _not_finite(path: Path) -> None:
    wave = _tone(1.5)
    wave[RATE] = np.nan
    soundfile.write(path, wave, RATE, format="WAV", subtype="FLOAT")


KINDS: dict[str, Callable[[Path], None]] = {
    "cut": _cut,
    "corrupt": _corrupt,
    "not-finite": _not_finite,
    "silent": lambda path: soundfile.write(path, 0 * _tone(1.5), RATE, format="WAV"),
    "unscaled": lambda path: soundfile.write(path, 100 * _tone(1.5), RATE, format="WAV", subtype="FLOAT"),
    "too-long": lambda path: soundfile.write(path, _tone(50.0), RATE, format="WAV"),
}


def spoil(manifest: Path, seed: int, vanishing: Path | None = None) -> None:
    """Add one utterance of each kind at a random place of a manifest.

    Args:
        vanishing: folder whose files a fault will remove; where it is given, an utterance gets its recording there.
    """
    draw = random.Random(seed)
    lines: list[dict[str, Any]] = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    good = len(lines)
    for kind, write in KINDS.items():
        path = manifest.parent / f"{kind}.audio"
        write(path)
        line = {"id": f"bad-{kind}", "audio": str(path), "text": "turn on the light", "language": "en"}
        lines.insert(draw.randrange(len(lines) + 1), line)
    if vanishing is not None:
        vanishing.mkdir()
        soundfile.write(vanishing / "gone.wav", _tone(1.5), RATE)
        line = {"id": _late_id(lines), "audio": str(vanishing / "gone.wav"), "text": "turn on", "language": "en"}
        lines.insert(draw.randrange(len(lines) + 1), line)
    assert good < len(lines)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _late_id(lines: list[dict[str, Any]]) -> str:
    """A name whose turn comes late in the first epoch, with the seed of the tiny run."""
    for number in range(1000):
        name = f"bad-gone-{number}"
        utterances = [Utterance(id=line, audio="", text="") for line in [*(line["id"] for line in lines), name]]
        order = [prompt.utterance.id for prompt in PromptSource(utterances, 3).take(len(utterances))]
        if order.index(name) >= SPARE + len(KINDS):
            return name
    raise AssertionError("no such name")
