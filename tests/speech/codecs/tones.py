"""A user's own `token2wav`: small, but it makes sound of tokens, each of them heard as a tone of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rewards.listening.group import Failure, SoundGroup
from rewards.registry import PartScore, on_sound
from speech.codecs.demo.codec import DemoCodec

RATE, HOP = 24_000, 960


def make(folder: Path) -> Callable[[Sequence[int], Sequence[int]], np.ndarray]:
    """Token i is 40 ms of 200 + i/4 Hz, softer where a prompt voice is given."""
    assert folder.is_dir()

    def token2wav(tokens: Sequence[int], voice: Sequence[int]) -> np.ndarray:
        time = np.arange(HOP) / RATE
        loudness = 0.25 if voice else 0.5
        tones = [loudness * np.sin(2 * np.pi * (200 + token / 4) * time) for token in tokens]
        return np.concatenate(tones).astype(np.float32)

    return token2wav


def make_short(folder: Path) -> Callable[[Sequence[int], Sequence[int]], np.ndarray]:
    """Loses more than a token."""
    inner = make(folder)
    return lambda tokens, voice: inner(tokens, voice)[: -2 * HOP]


def make_number(folder: Path) -> int:
    return 3


class OwnCodec(DemoCodec):
    """A codec class of the user's own."""

    name = "own"


@on_sound()
def brightness(group: SoundGroup) -> list[PartScore]:
    """Crossings of zero a second, in kHz: what the sound says of the tokens, and nothing but the sound."""
    return [
        PartScore(invalid=sound.reason)
        if isinstance(sound, Failure)
        else PartScore(value=float(np.diff(sound.wave > 0).sum() / max(sound.seconds, 0.04) / 1000))
        for sound in group.sounds
    ]
