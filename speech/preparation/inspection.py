"""What data sets hold, and what in them looks wrong: counts, histograms, duplicates, overlaps, odd rates."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from speech.preparation.sounds import SILENT_PEAK, Sound
from speech.records import Utterance
from speech.text import guess_language

RATE_EDGES = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0)
"""Upper edges of the bins of characters per second, exclusive; a last bin holds the rest."""
LENGTH_EDGES = (10, 20, 40, 80, 160, 320)
"""The same of characters in a transcript."""
ODD_RATE = 3.0
"""A transcript is too long for its recording, or too short, when its characters per second are so many times more, or
less, than the median of its language in this data set."""
ENOUGH = 20
"""Utterances of a language with which a median says something."""
CLIPPED_SHARE = 1e-3
"""Share of samples at full scale from which a recording counts as clipped."""
QUIET_SHARE = 0.6
"""Share of a recording near silence from which it is named."""


@dataclass(slots=True)
class Inspection:
    """Of one data set.

    Attributes:
        lengths, rates: utterances by bin of `LENGTH_EDGES` and `RATE_EDGES`.
        characters: how often each occurs, blanks apart.
        same_text: ids of utterances that say the same, one list for each text that occurs twice or more.
        same_sound: the same of recordings with the same samples.
        odd: by id: why a recording and its transcript do not fit.
        sounds: by id: what is wrong with the recording itself.
    """

    lengths: list[int] = field(default_factory=lambda: [0] * (len(LENGTH_EDGES) + 1))
    rates: list[int] = field(default_factory=lambda: [0] * (len(RATE_EDGES) + 1))
    characters: Counter[str] = field(default_factory=Counter)
    same_text: list[list[str]] = field(default_factory=list)
    same_sound: list[list[str]] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)
    sounds: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two data sets share.

    Attributes:
        texts, sounds, speakers: numbers of different ones that are in both.
        examples: (id in the first, id in the second) of some utterances of the same text or the same sound.
    """

    texts: int
    sounds: int
    speakers: int
    examples: tuple[tuple[str, str], ...]


def inspect(utterances: Sequence[Utterance], sounds: Mapping[str, Sound] | None = None) -> Inspection:
    """Look at one data set.

    Args:
        sounds: of its recordings by id, where they were listened to.
    """
    found = Inspection()
    rates: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for utterance in utterances:
        characters = said(utterance.text)
        found.lengths[bisect_right(LENGTH_EDGES, len(characters))] += 1
        found.characters.update(character for character in utterance.text if not character.isspace())
        if utterance.duration:
            rate = len(characters) / utterance.duration
            found.rates[bisect_right(RATE_EDGES, rate)] += 1
            rates[utterance.language or guess_language(utterance.text) or ""].append((utterance.id, rate))
    for of_language in rates.values():
        found.odd |= _odd(of_language)
    found.same_text = repeated((said(utterance.text), utterance.id) for utterance in utterances)
    if sounds is not None:
        found.same_sound = repeated((sound.digest, name) for name, sound in sounds.items())
        found.sounds = {name: fault for name, sound in sounds.items() if (fault := sound_fault(sound))}
    return found


def overlap(
    first: Sequence[Utterance],
    second: Sequence[Utterance],
    first_sounds: Mapping[str, Sound],
    second_sounds: Mapping[str, Sound],
    shown: int = 5,
) -> Overlap:
    """What two data sets share, of which one is meant to test what the other taught."""
    texts = _common({said(u.text): u.id for u in first}, {said(u.text): u.id for u in second})
    sounds = _common(
        {sound.digest: name for name, sound in first_sounds.items()},
        {sound.digest: name for name, sound in second_sounds.items()},
    )
    speakers = {u.speaker for u in first if u.speaker} & {u.speaker for u in second if u.speaker}
    return Overlap(len(texts), len(sounds), len(speakers), (*sounds, *texts)[:shown])


def said(text: str) -> str:
    """A text without case, blanks and punctuation: what two writings of one sentence have in common."""
    return "".join(character for character in text.casefold() if character.isalnum())


def repeated(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Names of each content that occurs more than once, from (content, name); the largest groups first."""
    names: dict[str, list[str]] = defaultdict(list)
    for content, name in pairs:
        names[content].append(name)
    return sorted((same for content, same in names.items() if content and len(same) > 1), key=len, reverse=True)


def sound_fault(sound: Sound) -> str | None:
    """What is wrong with a recording, if anything is."""
    if sound.peak < SILENT_PEAK:
        return "silence"
    if sound.clipped >= CLIPPED_SHARE:
        return f"clipped: {sound.clipped:.1%} of the samples are at full scale"
    if sound.quiet >= QUIET_SHARE:
        return f"{sound.quiet:.0%} of it is near silence"
    return None


def _odd(rates: Sequence[tuple[str, float]]) -> dict[str, str]:
    if len(rates) < ENOUGH:
        return {}
    usual = statistics.median(rate for _, rate in rates)
    found = {}
    for name, rate in rates:
        if rate > ODD_RATE * usual:
            found[name] = f"the transcript is too long: {rate:.1f} characters a second, {usual:.1f} are usual"
        elif rate < usual / ODD_RATE:
            found[name] = f"the transcript is too short: {rate:.1f} characters a second, {usual:.1f} are usual"
    return found


def _common(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, second[content]) for content, name in first.items() if content and content in second]
