"""Trailing silence (PAPER §6): a sample that goes on without saying anything."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rewards.listening.group import Sound, SoundGroup
from rewards.listening.judge import Wave
from rewards.registry import PartScore, on_sound, reward

_FRAME_S = 0.02


@reward("trailing_silence")
@on_sound()
@dataclass(frozen=True)
class TrailingSilence:
    """−min((s − `allowed_s`)/`full_s`, 1) for s seconds of silence at the end beyond `allowed_s`, else 0.

    A frame of 20 ms is silent when its level lies more than `below_db` under the loudest frame's. A sample that is
    silent or empty is nothing but trailing silence: −1.
    """

    allowed_s: float = field(default=0.5, metadata={"help": "seconds of silence at the end that cost nothing"})
    full_s: float = field(default=2.0, metadata={"help": "seconds beyond them at which the penalty is −1"})
    below_db: float = field(default=40.0, metadata={"help": "dB under the loudest frame that count as silence"})

    def __post_init__(self) -> None:
        if self.allowed_s < 0 or self.full_s <= 0 or self.below_db <= 0:
            raise ValueError("allowed_s is at least 0, full_s and below_db are above 0")

    def __call__(self, group: SoundGroup) -> list[PartScore]:
        return group.each(self._score)

    def _score(self, sound: Sound) -> PartScore:
        if sound.silent:
            return PartScore(value=-1.0, details={"seconds": sound.seconds})
        seconds = _silent_end(sound.wave, round(_FRAME_S * sound.sample_rate), self.below_db) / sound.sample_rate
        excess = max(seconds - self.allowed_s, 0.0)
        return PartScore(value=-min(excess / self.full_s, 1.0), details={"seconds": seconds})


def _silent_end(wave: Wave, frame: int, below_db: float) -> int:
    """Samples after the last frame that is not silent."""
    padded = np.pad(wave.astype(np.float64), (0, -len(wave) % frame))
    power = np.square(padded).reshape(-1, frame).mean(axis=1)
    last = int(np.flatnonzero(power > power.max() * 10.0 ** (-below_db / 10.0))[-1])
    return max(len(wave) - (last + 1) * frame, 0)
