"""x-vectors by transformers: WavLM and its relatives with a speaker head (Chen et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

from rewards.config import SpeakerConfig
from rewards.listening.judge import resample
from rewards.listening.speaker import SAMPLE_RATE, SpeakerModel, unit
from rewards.registries import SPEAKER_MODELS
from speech.errors import UserError

_LEAST = SAMPLE_RATE // 2  # the head's convolutions need some frames; shorter waves are repeated


@SPEAKER_MODELS.register("xvector")
class XVectorModel(SpeakerModel):
    """Cosines lie in [−1, 1]. Waves go one by one: the head pools over padding too."""

    def __init__(self, config: SpeakerConfig, threads: int) -> None:
        try:
            self._extractor: Any = AutoFeatureExtractor.from_pretrained(config.path)
            self._model: Any = AutoModelForAudioXVector.from_pretrained(config.path).to(config.device).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"speaker model 'xvector': cannot load {config.path}: {error}") from error

    @torch.inference_mode()
    def embed(self, waves: Sequence[NDArray[np.float32]], sample_rate: int) -> list[NDArray[np.float32]]:
        embeddings = []
        for wave in waves:
            signal = resample(wave, sample_rate, SAMPLE_RATE)
            if len(signal) < _LEAST:
                signal = np.tile(signal, -(-_LEAST // len(signal)))
            inputs = self._extractor(signal, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self._model.device)
            embeddings.append(unit(self._model(**inputs).embeddings[0].float().cpu().numpy()))
        return embeddings
