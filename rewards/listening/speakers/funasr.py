"""Speaker models that funasr loads: CAM++ (Wang et al. 2023), ERes2NetV2 (Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.config import SpeakerConfig
from rewards.listening.judge import resample
from rewards.listening.judges.funasr import load_auto_model
from rewards.listening.speaker import SAMPLE_RATE, SpeakerModel, unit
from rewards.registries import SPEAKER_MODELS

_LEAST = SAMPLE_RATE // 2  # its pooling wants a few frames; shorter waves are repeated


@SPEAKER_MODELS.register("funasr")
class FunASRSpeakerModel(SpeakerModel):
    """Cosines lie in [−1, 1]. Waves go one by one: these models pool over padding too."""

    def __init__(self, config: SpeakerConfig, threads: int) -> None:
        self._model = load_auto_model(config.path, config.device, threads)

    def embed(self, waves: Sequence[NDArray[np.float32]], sample_rate: int) -> list[NDArray[np.float32]]:
        signals = [resample(wave, sample_rate, SAMPLE_RATE) for wave in waves]
        signals = [np.tile(s, -(-_LEAST // len(s))) if len(s) < _LEAST else s for s in signals]
        results = self._model.generate(signals, batch_size=1)
        return [unit(result["spk_embedding"][0].float().cpu().numpy()) for result in results]
