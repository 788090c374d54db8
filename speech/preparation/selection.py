"""Choosing utterances for reinforcement learning (PAPER.md §2: D0 random, D1 hard, D2 by length, D3 keyword-rich).

Every function keeps the order of its input and depends only on its arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean

from speech.errors import UserError, first_of
from speech.records import Utterance
from speech.text import units

ErrorRate = Callable[[str, str, str | None], float]
"""(reference, hypothesis, language) → error rate: 0 is perfect, above 1 is possible."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How existing recognisers fare on an utterance.

    Attributes:
        error_rate: mean over the systems, against the transcript.
        disagreement: mean error rate over pairs of systems, each pair taken in both directions; 0 with one system.
    """

    error_rate: float
    disagreement: float


def measure_difficulty(
    utterances: Sequence[Utterance], systems: Sequence[Mapping[str, str]], error_rate: ErrorRate
) -> list[Difficulty]:
    """Score each utterance by the hypotheses of one or several systems.

    Args:
        systems: for each system, hypothesis by utterance id.

    Raises:
        UserError: a system has no hypothesis for some utterance.
        ValueError: no system is given.
    """
    if not systems:
        raise ValueError("difficulty needs the hypotheses of at least one system")
    for number, system in enumerate(systems, start=1):
        missing = [utterance.id for utterance in utterances if utterance.id not in system]
        if missing:
            count, shown = len(missing), first_of(missing, 5)
            raise UserError(f"system {number} has no hypothesis for {count:,} utterances: {shown}")
    measured = []
    for utterance in utterances:
        texts = [system[utterance.id] for system in systems]
        errors = [error_rate(utterance.text, text, utterance.language) for text in texts]
        between = [
            (error_rate(one, other, utterance.language) + error_rate(other, one, utterance.language)) / 2
            for one, other in combinations(texts, 2)
        ]
        measured.append(Difficulty(fmean(errors), fmean(between) if between else 0.0))
    return measured


def select_hard(
    utterances: Sequence[Utterance],
    difficulties: Sequence[Difficulty],
    low: float,
    high: float,
    min_disagreement: float | None = None,
) -> list[Utterance]:
    """D1 by recognisers: utterances whose mean error rate lies in [low, high], or on which the systems disagree.

    The upper bound leaves out utterances that every system gets wrong: there the transcript is usually at fault.
    Disagreement is taken as proof of difficulty by itself.

    Args:
        min_disagreement: mean pairwise error rate from which systems count as disagreeing; None ignores it.
    """
    return [
        utterance
        for utterance, difficulty in zip(utterances, difficulties, strict=True)
        if low <= difficulty.error_rate <= high
        or (min_disagreement is not None and difficulty.disagreement >= min_disagreement)
    ]


def repetition(text: str, language: str | None) -> float:
    """Share of a transcript's neighbouring pairs of words (characters in unspaced scripts) that occurred before in it.

    0 when nothing repeats, towards 1 when one phrase goes round and round; such utterances invite decoding loops.
    """
    words = units(text, language)
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def select_long_and_repetitive(
    utterances: Sequence[Utterance], min_seconds: float, min_repetition: float
) -> list[Utterance]:
    """D1 by content, the paper's other kind of hard utterance: both long and repetitive.

    Raises:
        ValueError: an utterance's duration is unknown.
    """
    long = select_by_duration(utterances, min_seconds)
    return [utterance for utterance in long if repetition(utterance.text, utterance.language) >= min_repetition]


def select_by_duration(
    utterances: Iterable[Utterance], min_seconds: float = 0.0, max_seconds: float = float("inf")
) -> list[Utterance]:
    """D2: utterances that last from `min_seconds` up to, but not including, `max_seconds` (the paper splits at 20 s).

    Raises:
        ValueError: an utterance's duration is unknown.
    """
    kept = []
    for utterance in utterances:
        if utterance.duration is None:
            raise ValueError(f"{utterance.id}: duration is unknown; load the manifest with check_audio='header'")
        if min_seconds <= utterance.duration < max_seconds:
            kept.append(utterance)
    return kept


def select_keyword_rich(utterances: Iterable[Utterance], min_keywords: int = 1) -> list[Utterance]:
    """D3: utterances with at least `min_keywords` keywords."""
    return [utterance for utterance in utterances if len(utterance.keywords) >= min_keywords]


def select_random(utterances: Sequence[Utterance], count: int, seed: int) -> list[Utterance]:
    """D0: `count` utterances (all, if there are fewer), chosen by id so that the file's order does not matter."""
    chosen = set(_shuffled((utterance.id for utterance in utterances), seed)[:count])
    return [utterance for utterance in utterances if utterance.id in chosen]


def split(
    utterances: Sequence[Utterance], shares: Mapping[str, float], seed: int, by_speaker: bool = False
) -> dict[str, list[Utterance]]:
    """Divide utterances at random into named parts.

    Args:
        shares: part → share of the utterances; they sum to 1.
        by_speaker: keep all utterances of a speaker in one part, so that test voices are unseen. The shares are
            then met as nearly as whole speakers allow.

    Raises:
        ValueError: the shares are not positive or do not sum to 1.
        UserError: a part stays empty, or `by_speaker` and an utterance has no speaker.
    """
    if any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares must be positive and sum to 1, got {dict(shares)}")
    units: dict[str, int] = {}
    for utterance in utterances:
        if by_speaker and utterance.speaker is None:
            raise UserError(f"{utterance.id}: cannot split by speaker, the utterance has none")
        unit = _unit(utterance, by_speaker)
        units[unit] = units.get(unit, 0) + 1

    parts = list(shares)
    wanted = {part: shares[part] * len(utterances) for part in parts}
    filled = dict.fromkeys(parts, 0)
    place: dict[str, str] = {}
    # Large speakers first, each to the part that lacks most: the greedy rule that keeps shares closest.
    for unit in sorted(_shuffled(units, seed), key=lambda name: -units[name]):
        part = max(parts, key=lambda name: (wanted[name] - filled[name]) / wanted[name])
        place[unit] = part
        filled[part] += units[unit]
    empty = [part for part in parts if not filled[part]]
    if empty:
        kind = "speakers" if by_speaker else "utterances"
        raise UserError(f"too few {kind} to split: {', '.join(empty)} stays empty")
    return {part: [u for u in utterances if place[_unit(u, by_speaker)] == part] for part in parts}


def _unit(utterance: Utterance, by_speaker: bool) -> str:
    return utterance.speaker or "" if by_speaker else utterance.id


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    ordered = sorted(names)
    random.Random(seed).shuffle(ordered)
    return ordered
