"""A plug-in of every kind, as a user writes them: outside of our packages, named `tests.toys:…` in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from learner.batches.advantage import Floats
from learner.config import LossConfig
from learner.metrics import Metrics
from rewards.config import SpeakerConfig
from rewards.listening.judge import Judge, Transcript
from rewards.listening.speaker import SpeakerModel
from rewards.registry import PartScore
from speech.codecs import Codec
from speech.families.demo.hearing import DemoFamily
from speech.records import Group


def brevity(group: Group, *, per_character: float = 0.1) -> list[PartScore]:
    """A reward: short transcripts."""
    return [PartScore(value=-per_character * len(trajectory.text)) for trajectory in group.trajectories]


def ranked(rewards: Floats) -> Floats:
    """An advantage: the rank of each reward, centred."""
    return np.argsort(np.argsort(rewards)) - (len(rewards) - 1) / 2


def reinforce(
    *, new_logprobs: torch.Tensor, advantages: torch.Tensor, sample_of: torch.Tensor, config: LossConfig, **_: object
) -> tuple[torch.Tensor, Metrics]:
    """A policy loss: −Σ A·log π, not normalised."""
    loss = -(advantages[sample_of] * new_logprobs).sum()
    return loss, {"tokens": torch.tensor(float(len(new_logprobs))), "toy": new_logprobs.detach().double().sum()}


class Parrot(Judge):
    """A judge: hears the number of samples."""

    def transcribe(
        self, waves: Sequence[np.ndarray], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        return [Transcript(f"{len(wave)} samples from {self.config.path}") for wave in waves]


class Loudness(SpeakerModel):
    """A speaker model: voices are alike when they are equally loud."""

    def __init__(self, config: SpeakerConfig, threads: int) -> None:
        self.config = config

    def embed(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
        angles = [float(np.abs(wave).max()) for wave in waves]
        return [np.array([np.cos(a), np.sin(a)], dtype=np.float32) for a in angles]


class ToyFamily(DemoFamily):
    """A model family: the demo's, under another name."""

    name = "toy"


class ToyCodec(Codec):
    """A codec: one token says how loud a hundredth of a second is."""

    name = "toy"
    model_types = ("toy",)
    sample_rate, token_rate, size = 8000, 100.0, 16

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        return [[int(abs(x) * 15) for x in wave[::80]] for wave in waves]

    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.repeat(np.array(row, dtype=np.float32) / 15, 80) for row in tokens]
