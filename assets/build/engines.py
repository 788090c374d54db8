"""How a voice says a sentence: the synthesis engines behind one call."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import soxr

from assets.build.acoustics import SAMPLE_RATE, Waveform, trim
from assets.build.espeak import Espeak
from assets.build.neural import Neural
from assets.build.voices import NeuralVoice, Voice

RATE_JITTER = 0.08  # each utterance is faster or slower by up to this share
PITCH_JITTER = 0.06


class Engines:
    """Both engines, each started when its first voice speaks."""

    @cached_property
    def _espeak(self) -> Espeak:
        return Espeak()

    @cached_property
    def _neural(self) -> Neural:
        return Neural()

    def speak(self, voice: Voice, text: str, rng: np.random.Generator) -> Waveform:
        """Clean speech at SAMPLE_RATE without silence at its ends, a little different each time."""
        rate = 1 + rng.uniform(-RATE_JITTER, RATE_JITTER)
        pitch = 1 + rng.uniform(-PITCH_JITTER, PITCH_JITTER)
        seed = int(rng.integers(2**31))
        if isinstance(voice, NeuralVoice):
            waveform = self._neural.speak(text, voice.speed * rate, voice.pitch * pitch, voice.formants, seed)
            source_rate = self._neural.sample_rate
        else:
            words_a_minute = round(voice.rate * rate)
            waveform = self._espeak.speak(
                text, voice.voice, words_a_minute, round(voice.pitch * pitch), voice.pitch_range, seed
            )
            source_rate = self._espeak.sample_rate
        return trim(np.asarray(soxr.resample(waveform, source_rate, SAMPLE_RATE), np.float32))
