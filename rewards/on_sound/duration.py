"""R2 of TTS, duration: speech neither drawn out nor rushed (2509.18569)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Literal

from rewards.listening.group import Failure, SoundGroup
from rewards.registry import PartScore, on_sound, reward
from speech.text import is_spaced, normalise


@reward("duration")
@on_sound()
@dataclass(frozen=True)
class Duration:
    """−|(|o| − T)/T|, at least −`cap`, with |o| the sample's speech tokens and T the reference number of them.

    `reference: history` takes for T the median over the utterance's earlier samples (`Group.past_lengths`, kept by
    `rewards.history.LengthHistory`); at the first visit, over the samples of this group that ended naturally. Without
    either there is no reference, and the group's samples are invalid. `reference: rate` takes T from the text:
    `seconds_per_character` for each character of the normalised text, spaces left out.
    """

    reference: Literal["history", "rate"] = field(default="history", metadata={"help": "where T comes from"})
    seconds_per_character: float = field(
        default=0.0, metadata={"help": "`rate` only: about 0.07 in English, 0.22 in Mandarin"}
    )
    cap: float = field(default=1.0, metadata={"help": "deviations above it count as it: the length of an empty sample"})

    def __post_init__(self) -> None:
        if self.cap <= 0:
            raise ValueError(f"cap is a positive number, not {self.cap}")
        if (self.reference == "rate") != (self.seconds_per_character > 0):
            raise ValueError("seconds_per_character, above 0, belongs to reference: rate, and rate needs it")

    def __call__(self, group: SoundGroup) -> list[PartScore]:
        target = self._target(group)
        if target is None:
            return [PartScore(invalid="no reference length: no sample of this text has ended naturally yet")] * len(
                group.sounds
            )
        return group.each(lambda sound: self._score(len(sound.tokens), target, sound.token_rate))

    def _score(self, length: int, target: float, token_rate: float) -> PartScore:
        deviation = (length - target) / target
        details = {"tokens": length, "target": target, "deviation": deviation, "seconds": length / token_rate}
        return PartScore(value=-min(abs(deviation), self.cap), details=details)

    def _target(self, group: SoundGroup) -> float | None:
        """T in tokens, or None where there is nothing to take it from."""
        sounds = [sound for sound in group.sounds if not isinstance(sound, Failure)]
        if self.reference == "rate":
            text = normalise(group.text, group.language)
            characters = len(text.replace(" ", "") if is_spaced(group.language) else text)
            rates = {sound.token_rate for sound in sounds}
            return characters * self.seconds_per_character * rates.pop() if rates and characters else None
        lengths = group.group.past_lengths or [len(s.tokens) for s in sounds if s.finished and s.tokens]
        return float(statistics.median(lengths)) if lengths else None
