"""Registry of judges. To add one: a class in this folder, a line in `JUDGES`, and its kind in `rewards.config`."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from rewards.config import JudgeConfig, SoundConfig
from rewards.judges.base import Judge, Transcript
from rewards.locations import model_path
from speech.errors import UserError

# Modules are named and not imported: each pulls in a library that only its own users need.
JUDGES = {
    "demo": "rewards.judges.demo:DemoJudge",
    "transformers": "rewards.judges.transformers_asr:TransformersJudge",
    "funasr": "rewards.judges.funasr_asr:FunASRJudge",
    "faster_whisper": "rewards.judges.faster_whisper_asr:FasterWhisperJudge",
}

__all__ = ["JUDGES", "Judge", "Transcript", "build_judge", "check_second_judge"]


def build_judge(config: JudgeConfig, threads: int = 1) -> Judge:
    """Load a judge.

    Raises:
        UserError: no judge is configured, its kind is unknown, or its model cannot be loaded.
    """
    check_judge(config)
    module, _, name = JUDGES[config.kind].partition(":")
    judge: type[Judge] = getattr(importlib.import_module(module), name)
    return judge(replace(config, path=model_path(config.path, "rewards.sound judge path")), threads)


def check_judge(config: JudgeConfig, key: str = "judge") -> None:
    """Everything about a judge that can be wrong without loading it.

    Raises:
        UserError: naming `rewards.sound.<key>`.
    """
    if not config.kind:
        raise UserError(f"rewards.sound.{key}.kind is empty: name a judge, one of {', '.join(JUDGES)}")
    if config.kind not in JUDGES:
        raise UserError(f"rewards.sound.{key}.kind: unknown judge {config.kind!r}; known are {', '.join(JUDGES)}")
    if not config.path:
        raise UserError(f"rewards.sound.{key}.path is empty: where is the model of judge {config.kind!r}?")
    if not config.numerals and config.kind != "faster_whisper":
        raise UserError(f"rewards.sound.{key}.numerals: judge {config.kind!r} cannot be kept from writing digits")
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
