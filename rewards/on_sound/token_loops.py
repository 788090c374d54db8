"""Token loops (PAPER §6): the same speech tokens over and over."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rewards.listening.group import Sound, SoundGroup
from rewards.registry import PartScore, on_sound, reward

_LEAST_TURNS = 3


@reward("token_loops")
@on_sound()
@dataclass(frozen=True)
class TokenLoops:
    """Minus the share of tokens that stand in a loop, in [−1, 0].

    A loop is a phrase of at most `period_s` seconds that follows itself exactly, at least three times in a row and for
    at least `least_s` seconds in all. Held vowels and pauses repeat a token too, but not for that long.
    """

    period_s: float = field(default=2.0, metadata={"help": "longest phrase looked for"})
    least_s: float = field(default=1.0, metadata={"help": "shorter repetition is speech"})

    def __post_init__(self) -> None:
        if self.period_s <= 0 or self.least_s <= 0:
            raise ValueError("period_s and least_s are above 0")

    def __call__(self, group: SoundGroup) -> list[PartScore]:
        return group.each(self._score)

    def _score(self, sound: Sound) -> PartScore:
        longest, least = round(self.period_s * sound.token_rate), round(self.least_s * sound.token_rate)
        share = looped_share(sound.tokens, longest, least)
        return PartScore(value=-share, details={"share": share})


def looped_share(tokens: tuple[int, ...], longest: int, least: int) -> float:
    """Share of tokens inside a loop: a phrase of 1 to `longest` tokens, three times or more, over `least` tokens or
    more; 0 for no tokens."""
    ids = np.asarray(tokens)
    looped = np.zeros(len(ids), dtype=bool)
    for period in range(1, min(longest, len(ids) // _LEAST_TURNS) + 1):
        # A run of r places that equal the one `period` before them is a stretch of r + period tokens in a loop.
        same = np.concatenate([[False], ids[period:] == ids[:-period], [False]])
        starts, ends = np.flatnonzero(~same[:-1] & same[1:]), np.flatnonzero(same[:-1] & ~same[1:])
        for start, end in zip(starts, ends, strict=True):
            length = end - start + period
            if length >= max(_LEAST_TURNS * period, least):
                looped[start : start + length] = True
    return float(looped.mean()) if len(ids) else 0.0
