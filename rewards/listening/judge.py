"""What a judge must do: waveforms → text, and how likely a reference is; and how a configuration's judge is found.

To add one: a subclass of `Judge` in a module of `rewards/listening/judges/`, registered under the module's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from rewards.config import JudgeConfig, JudgeEngineConfig, SoundConfig
from rewards.listening.locations import model_path
from rewards.registries import JUDGES
from speech.errors import UserError, did_you_mean
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


class JudgeLostError(Exception):
    """A judge cannot read any more, whatever the sample: its process must be replaced. The one error of a judge that is
    no sample's."""


class Judge(ABC):
    """A recogniser, loaded once per process when it is built.

    Attributes:
        states_likelihood: whether `mean_nll` can be asked for.
        takes_all: whether it batches by itself: it is given all samples of a call, whatever `rewards.sound.batch` is.
        languages: codes of the languages it knows; None when it takes any.
    """

    states_likelihood: bool = False
    takes_all: bool = False
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

        Raises:
            JudgeLostError: it can read nothing any more.
        """


def resample(wave: Wave, rate: int, to: int) -> Wave:
    """The waveform at another rate (soxr, high quality); the same array when the rates agree."""
    if rate == to:
        return wave
    return soxr.resample(wave, rate, to, quality="HQ").astype(np.float32, copy=False)


def build_judge(config: JudgeConfig, threads: int = 1) -> Judge:
    """Load a judge.

    Raises:
        UserError: no judge is configured, its kind is unknown, or its model cannot be loaded.
    """
    check_judge(config)
    judge: type[Judge] = JUDGES.find(config.kind)
    return judge(replace(config, path=model_path(config.path, "rewards.sound judge path")), threads)


def check_judge(config: JudgeConfig, key: str = "judge") -> None:
    """Everything about a judge that can be wrong without loading it.

    Raises:
        UserError: naming `rewards.sound.<key>`.
    """
    if not config.kind:
        raise UserError(f"rewards.sound.{key}.kind is empty: name a judge, one of {', '.join(JUDGES)}")
    if config.kind not in JUDGES:
        hint = did_you_mean(config.kind, JUDGES) or f"; known are {', '.join(JUDGES)}"
        raise UserError(f"rewards.sound.{key}.kind: unknown judge {config.kind!r}{hint}")
    if not config.path:
        raise UserError(f"rewards.sound.{key}.path is empty: where is the model of judge {config.kind!r}?")
    if not config.numerals and config.kind != "faster_whisper":
        raise UserError(f"rewards.sound.{key}.numerals: judge {config.kind!r} cannot be kept from writing digits")
    if config.kind == "vllm" and config.device != "cpu":
        raise UserError(f"rewards.sound.{key}.device: judge 'vllm' runs on a GPU where {key}.gpus asks for one")
    if config.kind != "vllm" and config.engine != JudgeEngineConfig():
        raise UserError(f"rewards.sound.{key}.engine: judge {config.kind!r} has no engine")
    model_path(config.path, f"rewards.sound.{key}.path")


def check_second_judge(config: SoundConfig) -> None:
    """A policy overfits the judge that trains it, so that judge alone cannot evaluate it (PAPER §6).

    Raises:
        UserError: one of the two judges is missing, or both are the same model.
    """
    check_judge(config.judge)
    check_judge(config.second_judge, "second_judge")
    if _model(config.judge) == _model(config.second_judge):
        raise UserError(
            f"rewards.sound.second_judge is the training judge again ({config.judge.path}): "
            "evaluation needs a judge that training never hears"
        )


def _model(config: JudgeConfig) -> str:
    """What tells two models apart: the folder, or the name on the hub."""
    path = Path(model_path(config.path, "rewards.sound judge path"))
    return str(path.resolve()) if path.exists() else config.path
