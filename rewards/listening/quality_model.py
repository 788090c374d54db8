"""DNSMOS (Reddy et al. 2021, 2022), the models that the package speechmos carries."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.listening.judge import resample
from speech.runtime.importing import import_extra

SAMPLE_RATE = 16_000
WINDOW = int(9.01 * SAMPLE_RATE)
"""Samples that the models take."""


def dnsmos_installed() -> bool:
    """Whether speechmos, and what it imports, is there."""
    try:
        for module in ("onnxruntime", "speechmos.dnsmos"):
            importlib.import_module(module)
    except ImportError:
        return False
    return True


class DNSMOS:
    """Loads the two onnx models once, on `threads` CPU threads.

    Raises:
        UserError: speechmos is not installed.
    """

    def __init__(self, threads: int) -> None:
        package = import_extra("tts", "speechmos.dnsmos", "speechmos==0.0.1.1", "reward 'quality'")
        runtime = import_extra("tts", "onnxruntime", "onnxruntime", "reward 'quality'")
        folder = Path(package.__file__ or "").parent / "dnsmos_models"
        primary, p808 = str(folder / "sig_bak_ovr.onnx"), str(folder / "model_v8.onnx")
        self._model = package.DNSMOS(primary, p808)
        options = runtime.SessionOptions()  # speechmos leaves onnxruntime its default, which is every core
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self._model.onnx_sess = runtime.InferenceSession(primary, options)
        self._model.p808_onnx_sess = runtime.InferenceSession(p808, options)

    def score(self, wave: NDArray[np.float32], sample_rate: int) -> dict[str, float]:
        """`overall`, `signal`, `background` and `p808`, each about 1 to 5, means over windows of 9.01 s.

        A wave shorter than a window is repeated to fill it, a longer one is cut into as many windows as it takes
        (the last one ends where the wave does): speechmos itself doubles a short clip and then scores it up to seven
        times.

        Args:
            wave: (samples,) mono, not empty.
            sample_rate: Hz.
        """
        signal = np.clip(resample(wave, sample_rate, SAMPLE_RATE), -1.0, 1.0)
        if len(signal) < WINDOW:
            signal = np.tile(signal, -(-WINDOW // len(signal)))[:WINDOW]
        count = -(-len(signal) // WINDOW)
        starts = np.linspace(0, len(signal) - WINDOW, count).astype(int)
        scores = [self._model(signal[start : start + WINDOW], SAMPLE_RATE, False) for start in starts]
        names = {"overall": "ovrl_mos", "signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}
        return {ours: float(np.mean([score[theirs] for score in scores])) for ours, theirs in names.items()}
