"""What a judge must do: waveforms → text, and how likely a reference is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import soxr
from numpy.typing import NDArray

from rewards.config import JudgeConfig
from speech.text import language_code

Wave = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a judge heard.

    Attributes:
        text: as the judge wrote it, without its markers; normalised only when scored.
        mean_nll: mean negative log-likelihood per token of the *reference* given the sound (teacher forcing), in
            nats; infinite for a silent sample, None when no reference was given or the judge cannot say.
    """

    text: str
    mean_nll: float | None = None


class Judge(ABC):
    """A recogniser, loaded once per process when it is built.

    Attributes:
        kind: registry key (`rewards.sound.judge.kind`).
        states_likelihood: whether `mean_nll` can be asked for.
        languages: codes of the languages it knows; None when it takes any.
    """

    kind: ClassVar[str]
    states_likelihood: bool = False
    languages: frozenset[str] | None = None

    def __init__(self, config: JudgeConfig, threads: int) -> None:
        """Load the model.

        Args:
            config: which model, and where.
            threads: CPU threads that it may use.

        Raises:
            UserError: the model is missing or is of another kind, or its package is not installed.
        """
        self.config = config
        if config.languages:
            self.languages = frozenset(map(language_code, config.languages))

    @abstractmethod
    def transcribe(
        self, waves: Sequence[Wave], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        """Read a batch of waveforms, in order.

        Args:
            waves: float32 mono (samples,) in [−1, 1], none empty.
            sample_rate: Hz of all of them.
            language: code of the language that all of them should be in.
            references: what each was to say; asks for `mean_nll` where the judge states it.
        """


def resample(wave: Wave, rate: int, to: int) -> Wave:
    """The waveform at another rate (soxr, high quality); the same array when the rates agree."""
    if rate == to:
        return wave
    return soxr.resample(wave, rate, to, quality="HQ").astype(np.float32, copy=False)
