"""What a list of utterances amounts to."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from speech.records import Utterance
from speech.text import guess_language, is_spaced

DURATION_EDGES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Upper edges (seconds, exclusive) of the bins of `Statistics.durations`; a last bin holds the rest."""


@dataclass(slots=True)
class Statistics:
    """Totals over utterances.

    Attributes:
        seconds: of the utterances whose duration is known.
        words: of the transcripts; characters in languages written without spaces.
        with_keywords: utterances that have keywords.
        languages: utterances by language, None where the manifest does not say.
        speakers: number of different speakers, where the manifest says.
        durations: utterances by bin of `DURATION_EDGES`.
    """

    utterances: int = 0
    seconds: float = 0.0
    words: int = 0
    with_keywords: int = 0
    languages: Counter[str | None] = field(default_factory=Counter)
    speakers: int = 0
    durations: list[int] = field(default_factory=lambda: [0] * (len(DURATION_EDGES) + 1))


def summarise(utterances: Iterable[Utterance]) -> Statistics:
    """Count."""
    total = Statistics()
    speakers = set()
    for utterance in utterances:
        total.utterances += 1
        total.words += _words(utterance)
        total.with_keywords += bool(utterance.keywords)
        total.languages[utterance.language] += 1
        if utterance.speaker is not None:
            speakers.add(utterance.speaker)
        if utterance.duration is not None:
            total.seconds += utterance.duration
            total.durations[bisect_right(DURATION_EDGES, utterance.duration)] += 1
    total.speakers = len(speakers)
    return total


def _words(utterance: Utterance) -> int:
    words = utterance.text.split()
    language = utterance.language or guess_language(utterance.text) or "en"
    return len(words) if is_spaced(language) else sum(map(len, words))
