"""Speaker models: waveform → embedding whose cosine says how alike two voices are.

To add one: a subclass of `SpeakerModel` in a module of `rewards/listening/speakers/`, registered under the module's
name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.config import SpeakerConfig
from rewards.registries import SPEAKER_MODELS
from speech.errors import UserError, did_you_mean

SAMPLE_RATE = 16_000
"""Hz at which all speaker models here listen."""


class SpeakerModel(ABC):
    """Loaded once per process when it is built."""

    @abstractmethod
    def __init__(self, config: SpeakerConfig, threads: int) -> None:
        """Load the model.

        Raises:
            UserError: the model is missing or of another kind, or its package is not installed.
        """

    @abstractmethod
    def embed(self, waves: Sequence[NDArray[np.float32]], sample_rate: int) -> list[NDArray[np.float32]]:
        """Waveforms (samples,), none empty → embeddings (size,) of length 1, in order."""


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector at length 1.

    Raises:
        ValueError: it has no length, or is not finite.
    """
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0.0:
        raise ValueError(f"a speaker embedding of length {length}")
    return (vector / length).astype(np.float32)


def build_speaker_model(config: SpeakerConfig, threads: int = 1) -> SpeakerModel:
    """Load a speaker model.

    Raises:
        UserError: its kind is unknown, or it cannot be loaded.
    """
    check_speaker_model(config)
    model: type[SpeakerModel] = SPEAKER_MODELS.find(config.kind)
    return model(config, threads)


def check_speaker_model(config: SpeakerConfig) -> None:
    """What can be wrong without loading it.

    Raises:
        UserError: naming the key.
    """
    if config.kind not in SPEAKER_MODELS:
        hint = did_you_mean(config.kind, SPEAKER_MODELS) or f"; known are {', '.join(SPEAKER_MODELS)}"
        raise UserError(f"rewards.sound.speaker.kind: unknown speaker model {config.kind!r}{hint}")
    if config.kind != "resemblyzer" and not config.path:
        raise UserError(f"rewards.sound.speaker.path is empty: where is the model of {config.kind!r}?")
