"""Small sound files for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def write_tone() -> Callable[..., Path]:
    """`write_tone(path, seconds=1.0, rate=16_000, **soundfile options)` writes a 300 Hz sine and returns its path."""

    def write(path: Path, seconds: float = 1.0, rate: int = 16_000, **options: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.5 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate)) / rate)
        soundfile.write(path, wave.astype(np.float32), rate, **options)
        return path

    return write


@pytest.fixture
def folder(tmp_path, write_tone) -> Path:
    """A folder with one-second files a.wav, b.wav and c.flac."""
    for name in ("a.wav", "b.wav", "c.flac"):
        write_tone(tmp_path / name)
    return tmp_path
