"""Pitch of speech: autocorrelation of windowed frames, and the smoothest path through its peaks.

After Boersma, "Accurate short-term analysis of the fundamental frequency", 1993: a frame's autocorrelation is divided
by that of its window, so that its height at the period tells how periodic the frame is.
"""

from __future__ import annotations

import numpy as np

MIN_HZ, MAX_HZ = 60.0, 450.0
CANDIDATES = 96  # on a logarithmic scale: steps of 2 %
WINDOW_SECONDS = 0.05  # three periods of the lowest pitch
LOW_PASS_HZ = 900.0
"""Above this, speech is damped: without it the peaks are narrower than the steps between candidates."""
JUMP_COST = 12.0  # of correlation, per octave that the path moves in one frame
LONG_PERIOD_COST = 0.06  # per octave: a multiple of the period correlates as well as the period itself


def track(wave: np.ndarray, sample_rate: int, hop: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Fundamental frequency of each frame, whose centres lie at 0, hop, 2·hop, … samples.

    Returns:
        hz: float32 (frames,), a smooth curve that goes on, without meaning, where nothing is voiced.
        strength: float32 (frames,), from 0 (noise, silence) to 1 (periodic).
    """
    size = round(WINDOW_SECONDS * sample_rate)
    window = np.hanning(size)
    padded = np.pad(wave.astype(np.float64), (size // 2, size // 2 + hop * frames))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, size)[: hop * frames : hop]
    pieces = (pieces - pieces.mean(axis=1, keepdims=True)) * window
    frequency = np.fft.rfftfreq(2 * size, 1 / sample_rate)
    weight = 1 / (1 + (frequency / LOW_PASS_HZ) ** 4)
    correlation = _autocorrelation(pieces, weight) / np.maximum(_autocorrelation(window[None]), 1e-6)
    # A little is added to the energy, so that the noise floor of silence is not taken for a voice.
    energy = correlation[:, :1] + 1e-4 * max(float(correlation[:, 0].max()), 1e-8)
    hz = np.geomspace(MIN_HZ, MAX_HZ, CANDIDATES)
    lags = sample_rate / hz
    whole = lags.astype(int)
    share = lags - whole
    normal = correlation / energy
    score = np.clip(normal[:, whole] * (1 - share) + normal[:, whole + 1] * share, 0, 1)
    path = _best_path(score + LONG_PERIOD_COST * np.log2(hz / MIN_HZ))
    return hz[path].astype(np.float32), score[np.arange(frames), path].astype(np.float32)


def _autocorrelation(pieces: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """Rows (n, size) → their autocorrelation at lags 0 … size − 1, divided by the size; `weight` filters the power."""
    size = pieces.shape[1]
    spectrum = np.fft.rfft(pieces, 2 * size, axis=1)
    return np.fft.irfft(np.square(np.abs(spectrum)) * weight, axis=1)[:, :size] / size


def _best_path(score: np.ndarray) -> np.ndarray:
    """Viterbi: the candidate of each frame that maximises the summed score less the cost of all jumps."""
    frames, count = score.shape
    octaves = np.log2(MAX_HZ / MIN_HZ) / (count - 1)
    jumps = JUMP_COST * octaves * np.abs(np.arange(count)[:, None] - np.arange(count)[None])
    # The cost is capped: after a pause the voice may start anywhere.
    jumps = np.minimum(jumps, 1.5)
    total, back = score[0], np.zeros((frames, count), np.int64)
    columns = np.arange(count)
    for frame in range(1, frames):
        reached = total[None] - jumps
        back[frame] = reached.argmax(axis=1)
        total = reached[columns, back[frame]] + score[frame]
    path = np.zeros(frames, np.int64)
    path[-1] = total.argmax()
    for frame in range(frames - 1, 0, -1):
        path[frame - 1] = back[frame, path[frame]]
    return path
