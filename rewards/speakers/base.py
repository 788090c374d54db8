"""What a speaker model must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rewards.config import SpeakerConfig

SAMPLE_RATE = 16_000
"""Hz at which all speaker models here listen."""


class SpeakerModel(ABC):
    """Loaded once per process when it is built.

    Attributes:
        kind: registry key (`rewards.sound.speaker.kind`).
    """

    kind: ClassVar[str]

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
