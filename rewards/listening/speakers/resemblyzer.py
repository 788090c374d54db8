"""Resemblyzer: a GE2E d-vector (Wan et al. 2018) whose weights come in its wheel; the default on CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.config import SpeakerConfig
from rewards.listening.judge import resample
from rewards.listening.speaker import SAMPLE_RATE, SpeakerModel, unit
from rewards.registries import SPEAKER_MODELS
from speech.runtime.importing import import_extra

_LEAST = SAMPLE_RATE // 5  # its voice detector may cut a sample down to nothing; then the sample as it is tells more


@SPEAKER_MODELS.register("resemblyzer")
class ResemblyzerModel(SpeakerModel):
    """256 non-negative values: cosines lie in [0, 1]; about 0.9 for one voice, 0.5 to 0.7 for two."""

    def __init__(self, config: SpeakerConfig, threads: int) -> None:
        package = import_extra("tts", "resemblyzer", "resemblyzer==0.1.4", "speaker model 'resemblyzer'")
        self._prepare = package.preprocess_wav
        self._encoder = package.VoiceEncoder(config.device, verbose=False)

    def embed(self, waves: Sequence[NDArray[np.float32]], sample_rate: int) -> list[NDArray[np.float32]]:
        return [unit(self._encoder.embed_utterance(self._prepared(wave, sample_rate))) for wave in waves]

    def _prepared(self, wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        signal = resample(wave, sample_rate, SAMPLE_RATE)
        spoken: NDArray[np.float32] = self._prepare(signal)
        return spoken if len(spoken) >= _LEAST else signal
