"""Edit counts between reference and hypothesis, for rewards and for evaluation.

Both texts pass through the same `speech.text.scored_pair`; the minimum edit alignment is jiwer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jiwer
import numpy as np
from numpy.typing import NDArray

from speech.text import guess_language, is_spaced, language_code, scored_pair, whisper_units


@dataclass(frozen=True, slots=True)
class EditCounts:
    """Edits that turn a reference into a hypothesis, in scoring units. Counts of several utterances add up.

    Attributes:
        hits, substitutions, deletions: of reference units; together they make up the reference.
        insertions: hypothesis units that align to nothing.
        longest_insertion: longest run of consecutive insertions; of a sum, the longest of any utterance.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    longest_insertion: int = 0

    @property
    def reference_length(self) -> int:
        """Units in the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference unit, in [0, ∞). An empty reference counts as one unit, so that output on silence
        has a finite, bad rate, and silence answered by nothing has rate 0."""
        return self.errors / max(self.reference_length, 1)

    def __add__(self, other: EditCounts) -> EditCounts:
        return EditCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            max(self.longest_insertion, other.longest_insertion),
        )


def scored_language(reference: str, hypothesis: str, language: str | None) -> str:
    """The language by which *both* texts are normalised: the given one, else guessed from the reference, and from
    the hypothesis only when the reference is blank."""
    if language is not None:
        return language_code(language)
    return guess_language(reference) or guess_language(hypothesis) or "en"


@lru_cache(maxsize=65536)
def word_edits(reference: str, hypothesis: str, language: str | None) -> EditCounts:
    """Edits in scoring units (the counts behind WER): words, or characters in languages written without spaces.

    Args:
        reference, hypothesis: raw text; normalised here.
        language: code, tag or English name; None guesses it (see `scored_language`).
    """
    return unit_edits(*scored_units(reference, hypothesis, scored_language(reference, hypothesis, language)))


@lru_cache(maxsize=65536)
def character_edits(reference: str, hypothesis: str, language: str | None) -> EditCounts:
    """Edits in characters (the counts behind CER); the space between words counts as one. Arguments as `word_edits`."""
    code = scored_language(reference, hypothesis, language)
    if not is_spaced(code):
        return word_edits(reference, hypothesis, language)
    return unit_edits(*scored_pair(reference, hypothesis, code))


def unit_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> EditCounts:
    """Edits between two sequences of units."""
    if reference == hypothesis:  # most pairs of a good model; an alignment takes about 80 µs
        return EditCounts(hits=len(reference))
    result = jiwer.process_words(list(reference), list(hypothesis), _UNITS, _UNITS)
    insertions = (c.hyp_end_idx - c.hyp_start_idx for c in result.alignments[0] if c.type == "insert")
    return EditCounts(
        result.hits, result.substitutions, result.deletions, result.insertions, max(insertions, default=0)
    )


def unit_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[list[int], int]:
    """Errors of each hypothesis unit, in the alignment that `unit_edits` counts.

    Returns:
        Per unit of the hypothesis 1 where it is substituted or inserted, and one more for each reference unit that is
        missing right before it; and how many are missing at the end. Together they are all errors.
    """
    errors = [0] * (len(hypothesis) + 1)
    for chunk in jiwer.process_words(list(reference), list(hypothesis), _UNITS, _UNITS).alignments[0]:
        if chunk.type == "delete":
            errors[chunk.hyp_start_idx] += chunk.ref_end_idx - chunk.ref_start_idx
        elif chunk.type != "equal":
            for place in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                errors[place] += 1
    return errors[:-1], errors[-1]


class AlignedUnits(NamedTuple):
    """Units of both texts that stand side by side in an alignment: equal ones, or an error of one kind. A deletion has
    no units of the hypothesis, an insertion none of the reference."""

    kind: str
    """`equal`, `substitute`, `delete` or `insert`."""
    reference: Sequence[str]
    hypothesis: Sequence[str]


def aligned_units(reference: Sequence[str], hypothesis: Sequence[str]) -> list[AlignedUnits]:
    """The alignment that `unit_edits` counts, from left to right."""
    return [
        AlignedUnits(c.type, reference[c.ref_start_idx : c.ref_end_idx], hypothesis[c.hyp_start_idx : c.hyp_end_idx])
        for c in jiwer.process_words(list(reference), list(hypothesis), _UNITS, _UNITS).alignments[0]
    ]


def scored_units(reference: str, hypothesis: str, language: str) -> tuple[list[str], list[str]]:
    """The units of both texts that `word_edits` compares."""
    first, second = scored_pair(reference, hypothesis, language)
    return (first.split(), second.split()) if is_spaced(language) else (list(first), list(second))


def word_alignment(reference: str, hypothesis: str, language: str | None) -> list[AlignedUnits]:
    """The alignment that `word_edits` counts, in order. Arguments as there."""
    return aligned_units(*scored_units(reference, hypothesis, scored_language(reference, hypothesis, language)))


class _Units(jiwer.AbstractTransform):
    """A list is the units of one sentence, not sentences that jiwer still has to cut at their spaces."""

    def process_list(self, inp: list[str]) -> list[list[str]]:
        return [inp]


_UNITS = _Units()


def whisper_rate(pairs: Iterable[TranscriptPair]) -> float | None:
    """Corpus WER of the English pairs by Whisper's rules as published, as leaderboards have it; None without any."""
    counts = [
        unit_edits(whisper_units(reference), whisper_units(hypothesis))
        for reference, hypothesis, language in pairs
        if scored_language(reference, hypothesis, language) == "en"
    ]
    return sum(counts, EditCounts()).rate if counts else None


class TranscriptPair(NamedTuple):
    """A reference, its hypothesis (both raw text), and their language (None: guessed from the script)."""

    reference: str
    hypothesis: str
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRates:
    """Corpus error rates with their edits.

    Attributes:
        wer, cer: errors per reference unit and per character, of all utterances together.
        wer_low, wer_high, cer_low, cer_high: their confidence intervals.
        sentence_error_rate: share of utterances with an error.
        substitutions, deletions, insertions: in scoring units.
        words: reference scoring units: characters in languages without spaces, in which case `wer` equals `cer`.
        utterances: how many.
    """

    wer: float
    wer_low: float
    wer_high: float
    cer: float
    cer_low: float
    cer_high: float
    sentence_error_rate: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int


class CorpusRates(NamedTuple):
    """Error rates of a corpus, and of its utterances in each language by code."""

    overall: ErrorRates
    languages: dict[str, ErrorRates]


def corpus_rates(
    pairs: Iterable[TranscriptPair], *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> CorpusRates:
    """Corpus error rates with bootstrap confidence intervals, overall and per language.

    Rates are corpus rates (all errors over all reference units), not means of utterance rates. The interval is the
    percentile bootstrap over utterances (Bisani and Ney, 2004), so it shows the chance of the draw of utterances,
    not of speakers or of training seeds.

    Args:
        pairs: at least one.
        resamples: bootstrap draws. The result depends on `seed` alone, not on the order of languages.
        confidence: width of the interval, in (0, 1).

    Raises:
        ValueError: when there are no pairs.
    """
    scored: list[tuple[str, EditCounts, EditCounts]] = []
    for reference, hypothesis, language in pairs:
        code = scored_language(reference, hypothesis, language)
        scored.append((code, word_edits(reference, hypothesis, code), character_edits(reference, hypothesis, code)))
    if not scored:
        raise ValueError("no transcripts to score")

    def rates(rows: Sequence[tuple[str, EditCounts, EditCounts]]) -> ErrorRates:
        words, characters = [row[1] for row in rows], [row[2] for row in rows]
        total = sum(words, EditCounts())
        wer_low, wer_high = _interval(words, resamples, seed, confidence)
        cer_low, cer_high = _interval(characters, resamples, seed, confidence)
        return ErrorRates(
            wer=total.rate,
            wer_low=wer_low,
            wer_high=wer_high,
            cer=sum(characters, EditCounts()).rate,
            cer_low=cer_low,
            cer_high=cer_high,
            sentence_error_rate=sum(row.errors > 0 for row in words) / len(words),
            substitutions=total.substitutions,
            deletions=total.deletions,
            insertions=total.insertions,
            words=total.reference_length,
            utterances=len(rows),
        )

    languages = sorted({code for code, _, _ in scored})
    return CorpusRates(rates(scored), {code: rates([row for row in scored if row[0] == code]) for code in languages})


def _interval(counts: Sequence[EditCounts], resamples: int, seed: int, confidence: float) -> tuple[float, float]:
    sums = resampled(np.array([(c.errors, c.reference_length) for c in counts]), resamples, seed)
    return interval(sums[:, 0] / np.maximum(sums[:, 1], 1), confidence)


def resampled(counts: NDArray[np.int64], resamples: int = 1000, seed: int = 0) -> NDArray[np.int64]:
    """What counts of utterances add up to in bootstrap draws: as many utterances as there are, drawn with replacement.

    Args:
        counts: (utterances, columns), at least one utterance. Columns of one draw are of the same utterances.

    Returns:
        (resamples, columns).
    """
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, counts.shape[1]), np.int64)
    for draw in range(resamples):  # one draw at a time: a matrix of all would need gigabytes on a large corpus
        picked = generator.integers(0, len(counts), len(counts))
        sums[draw] = np.bincount(picked, minlength=len(counts)) @ counts
    return sums


def interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a statistic's bootstrap values (resamples,)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
