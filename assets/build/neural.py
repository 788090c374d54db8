"""Pseudo-speakers from the one neural voice inside `hibari-tts`.

The engine predicts a spectrum and a pitch for each frame of 12.5 ms and turns them into a waveform. We change both in
between: the frequency axis is stretched (a longer or shorter vocal tract) and the pitch scaled, which
listeners and speaker encoders hear as other people, without the artefacts of shifting finished audio.
"""

from __future__ import annotations

import numpy as np
from hibari import Hibari, dsp

from assets.build.acoustics import Waveform


def stretch(spectrum: Waveform, factor: float) -> Waveform:
    """Move what lies at frequency f to f * factor; rows are frequency bins, columns are frames."""
    source = np.clip(np.arange(len(spectrum)) / factor, 0, len(spectrum) - 1)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, len(spectrum) - 1)
    weight = (source - low).astype(np.float32)[:, None]
    return spectrum[low] * (1 - weight) + spectrum[high] * weight


class Neural:
    """The engine with its packaged voice, on one thread."""

    sample_rate: int = dsp.SR

    def __init__(self) -> None:
        self._engine = Hibari(threads=1)

    def speak(self, text: str, speed: float, pitch: float, formants: float, seed: int = 0) -> Waveform:
        """Mono float samples at `sample_rate`; 1.0 is the voice's own speed, pitch and formant frequencies."""
        engine, rng = self._engine, np.random.default_rng(seed)
        parts = []
        for phonemes in engine.phonemize(text):
            inputs = {
                "ids": np.asarray([engine.ids(phonemes)], np.int64),
                "speed": np.asarray([speed], np.float32),
            }
            *spectra, f0 = (output[0] for output in engine.sess.run(None, inputs))
            parts.append(dsp.synth(*(stretch(part, formants) for part in spectra), f0 * pitch, rng))
        if not parts:
            raise RuntimeError(f"the neural voice said nothing for {text!r}")
        return np.concatenate(parts)
