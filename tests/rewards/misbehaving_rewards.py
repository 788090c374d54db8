"""User rewards, good and bad, found by `module:function`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards.config import JudgeConfig
from rewards.listening.judge import Judge, Transcript
from rewards.registry import PartScore
from speech.records import Group

not_a_reward = 3


def length(group: Group, *, scale: float = 1.0) -> list[PartScore]:
    return [PartScore(value=scale * len(t.text)) for t in group.trajectories]


def raises(group: Group) -> list[PartScore]:
    raise RuntimeError("judge is down")


def not_a_number(group: Group) -> list[PartScore]:
    return [PartScore(value=float("nan") if t.text == "nan" else 1.0) for t in group.trajectories]


def too_few(group: Group) -> list[PartScore]:
    return [PartScore(value=1.0)]


def bare_floats(group: Group) -> Sequence[float]:
    return [1.0 for _ in group.trajectories]


def partly(group: Group) -> list[PartScore]:
    return [
        PartScore(invalid="judge error: no audio") if t.text == "bad" else PartScore(value=1.0)
        for t in group.trajectories
    ]


def hangs_on_hang(group: Group) -> list[PartScore]:
    if group.prompt.utterance.text == "hang":
        time.sleep(600)
    return length(group)


def dies_once(group: Group, *, marker: str) -> list[PartScore]:
    """Ends its process at the first call of all."""
    if group.prompt.utterance.text == "die" and not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    return length(group)


def notes(group: Group, *, file: str, seconds: float = 0.0) -> list[PartScore]:
    """Writes down each call."""
    time.sleep(seconds)
    with Path(file).open("a", encoding="utf-8") as out:
        out.write(group.prompt.id + "\n")
    return length(group)


class HangingJudge(Judge):
    """Answers at once, but never about a sound longer than half a second."""

    def __init__(self, config: JudgeConfig, threads: int) -> None:
        super().__init__(config, threads)

    def transcribe(
        self, waves: Sequence[np.ndarray], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        if max(map(len, waves)) > sample_rate / 2:
            time.sleep(600)
        return [Transcript("word") for _ in waves]


def first_unknown(group: Group) -> list[PartScore]:
    """The first sample has no score, the others have that of their length."""
    others = group.trajectories[1:]
    return [PartScore(invalid="not heard"), *(PartScore(value=float(len(t.text))) for t in others)]
