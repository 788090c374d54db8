"""Listening to recordings without understanding them: level, clipping, silence, and whether two are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from speech.audio import load_audio
from speech.errors import InputError, Problem
from speech.manifests.progress import map_files
from speech.records import Utterance

SAMPLE_RATE = 16_000
"""Hz at which recordings are looked at."""
SILENT_PEAK = 1e-3
"""A recording that never exceeds this (−60 dB of full scale) is silence."""
FULL_SCALE = 0.999
FRAME_S = 0.02
QUIET_DB = 40.0
"""A frame so far below the loudest one is near silence."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What an utterance's recording is like.

    Attributes:
        digest: BLAKE3 of its samples in 16 bits.
        peak: largest absolute sample; 1 is full scale.
        clipped: share of samples at full scale.
        quiet: share of frames of 20 ms that are 40 dB below the loudest, or lower.
    """

    digest: str
    peak: float
    clipped: float
    quiet: float


def listen(utterances: Sequence[Utterance]) -> tuple[dict[str, Sound], list[Problem]]:
    """Decode every recording, with a progress bar.

    Returns:
        Sounds by id, and what is wrong with those that cannot be decoded.
    """
    sounds: dict[str, Sound] = {}
    problems: list[Problem] = []
    for utterance, result in zip(utterances, map_files(_listen, utterances, "listening", 200), strict=True):
        if isinstance(result, Sound):
            sounds[utterance.id] = result
        else:
            problems += result
    return sounds, problems


def sound_of(wave: np.ndarray) -> Sound:
    """Look at a waveform, (samples,) at `SAMPLE_RATE`."""
    level = np.abs(wave)
    peak = float(level.max(initial=0.0))
    samples = (wave.clip(-1, 1) * 32767).round().astype("<i2")
    clipped = float((level >= FULL_SCALE).mean()) if len(wave) else 0.0
    return Sound(blake3(samples.tobytes()).hexdigest(), peak, clipped, _quiet(wave))


def _quiet(wave: np.ndarray) -> float:
    length = round(FRAME_S * SAMPLE_RATE)
    frames = wave[: len(wave) // length * length].reshape(-1, length)
    if not len(frames):
        return 0.0
    energy = np.square(frames, dtype=np.float64).mean(1)
    return float((energy <= energy.max() * 10 ** (-QUIET_DB / 10)).mean())


def _listen(utterance: Utterance) -> Sound | tuple[Problem, ...]:
    try:
        return sound_of(load_audio(utterance, SAMPLE_RATE))
    except InputError as error:
        return error.problems
