"""R3 of TTS, diversity: samples that differ from one another, and speech whose pitch moves (2509.18569)."""

from __future__ import annotations

from dataclasses import dataclass, field

from rapidfuzz.distance import Levenshtein

from rewards.listening.group import Failure, SoundGroup
from rewards.listening.pitch import semitone_std
from rewards.registry import PartScore, on_sound, reward


@reward("diversity")
@on_sound("pitch")
@dataclass(frozen=True)
class Diversity:
    """`tokens` · d + `f0` · min(σ / `f0_full`, 1), in [0, `tokens` + `f0`].

    d is the mean edit distance from the sample's speech tokens to those of the group's other samples, each divided by
    the longer length: the group's mean distance, split by sample, since a number that all samples share would give
    none of them an advantage. σ is the standard deviation of F0 in semitones, capped because noise and octave errors
    have the largest one.

    A sample that is empty, silent, or did not end naturally has diversity 0 and is no one's neighbour: garbage is
    always far from speech.
    """

    tokens: float = field(default=0.5, metadata={"help": "weight of the edit distance"})
    f0: float = field(default=0.5, metadata={"help": "weight of F0's deviation"})
    f0_full: float = field(default=4.0, metadata={"help": "semitones of deviation that earn all of it"})

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.f0 < 0 or self.f0_full <= 0:
            raise ValueError("tokens and f0 are at least 0, f0_full is above 0")

    def __call__(self, group: SoundGroup) -> list[PartScore]:
        kept = {
            place: sound.tokens
            for place, sound in enumerate(group.sounds)
            if not isinstance(sound, Failure) and sound.finished and not sound.silent and sound.tokens
        }
        return [self._score(place, kept, pitch) for place, pitch in enumerate(self._deviations(group))]

    def _deviations(self, group: SoundGroup) -> list[float | Failure]:
        return [
            pitch if isinstance(pitch, Failure) else 0.0 if pitch is None else semitone_std(pitch)
            for pitch in group.pitches()
        ]

    def _score(self, place: int, kept: dict[int, tuple[int, ...]], deviation: float | Failure) -> PartScore:
        if isinstance(deviation, Failure):
            return PartScore(invalid=deviation.reason)
        if place not in kept:
            return PartScore(value=0.0, details={"edit_distance": 0.0, "f0_std": deviation})
        others = [tokens for other, tokens in kept.items() if other != place]
        distances = [Levenshtein.normalized_distance(kept[place], other) for other in others]
        distance = sum(distances) / len(distances) if distances else 0.0
        value = self.tokens * distance + self.f0 * min(deviation / self.f0_full, 1.0)
        return PartScore(value=value, details={"edit_distance": distance, "f0_std": deviation})
