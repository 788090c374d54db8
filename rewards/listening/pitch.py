"""Fundamental frequency, by WORLD."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from speech.runtime.importing import import_extra

F0_FLOOR = 60.0
F0_CEILING = 600.0
_FRAME_MS = 10.0
_LEAST_FRAMES = 5  # 50 ms of voice; below it a deviation is chance


def world() -> ModuleType:
    """pyworld, or one clear error."""
    return import_extra("tts", "pyworld", "pyworld==0.3.6", "F0 (rewards on sound: diversity)")


def f0_contour(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """F0 of all frames, one per 10 ms, in Hz; 0 where nothing is voiced.

    DIO refined by StoneMask (Morise et al. 2009, 2010): about a hundred times faster than real time on one core.

    Args:
        wave: (samples,) mono.
        sample_rate: Hz.
    """
    pyworld = world()
    signal = wave.astype(np.float64)
    f0, times = pyworld.dio(signal, sample_rate, f0_floor=F0_FLOOR, f0_ceil=F0_CEILING, frame_period=_FRAME_MS)
    contour: NDArray[np.float64] = pyworld.stonemask(signal, f0, times, sample_rate)
    return contour


def voiced_f0(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """F0 of the voiced frames alone, in Hz; empty when nothing is voiced. Arguments as `f0_contour`."""
    f0 = f0_contour(wave, sample_rate)
    return f0[f0 > 0]


def semitone_std(f0: NDArray[np.float64]) -> float:
    """Standard deviation of F0 in semitones, 0 when less than 50 ms are voiced.

    In semitones and not in Hz, because a high voice would else count as a lively one.
    """
    if len(f0) < _LEAST_FRAMES:
        return 0.0
    return float(np.std(12.0 * np.log2(f0)))


def mean_f0(f0: NDArray[np.float64]) -> float | None:
    """Mean F0 in Hz; None when less than 50 ms are voiced."""
    return float(np.mean(f0)) if len(f0) >= _LEAST_FRAMES else None
