"""The difference of two systems' error rates on the same utterances: interval and significance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speech.edits import EditCounts, interval, resampled

FLIPS = 10_000
"""Draws of the sign-flip test: its smallest p is about 1/FLIPS."""
LEVEL = 0.05
"""A difference with a p below it is called significant."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Error rates of A and of B, and B − A.

    Attributes:
        a, b: corpus rates, errors per unit.
        difference: b − a; below 0 where B is better.
        low, high: its 95 % interval.
        p: probability of a difference as large, in either direction, if A and B were interchangeable.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float

    @property
    def worse(self) -> bool:
        """B is significantly worse."""
        return self.difference > 0 and self.p < LEVEL


def paired_difference(a: Sequence[EditCounts], b: Sequence[EditCounts], seed: int = 0) -> Difference:
    """Compare two systems, utterance by utterance.

    The interval is the percentile bootstrap of the difference, both systems being counted on the same drawn utterances
    (Bisani and Ney, 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation"): what makes an
    utterance hard for both does not widen it. p is of a two-sided sign-flip test of the difference in errors: each
    utterance's two counts are exchanged with probability one half.

    Args:
        a, b: of the same utterances in the same order; at least one.
        seed: of both draws. Exchanging A and B changes the signs and nothing else.
    """
    columns = [
        (one.errors, one.reference_length, two.errors, two.reference_length) for one, two in zip(a, b, strict=True)
    ]
    counts: NDArray[np.int64] = np.array(columns)
    rate_a, rate_b = (float(rates[0]) for rates in _rates(counts.sum(axis=0, keepdims=True)))
    drawn_a, drawn_b = _rates(resampled(counts, seed=seed))
    low, high = interval(drawn_b - drawn_a)
    p = sign_flip_p(counts[:, 2] - counts[:, 0], seed)
    return Difference(rate_a, rate_b, rate_b - rate_a, low, high, p)


def _rates(sums: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return sums[:, 0] / np.maximum(sums[:, 1], 1), sums[:, 2] / np.maximum(sums[:, 3], 1)


def sign_flip_p(differences: NDArray[np.int64], seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p of a sum of differences when each of them might have had the other sign.

    Utterances whose differences are equally large are flipped together: how many of them keep their sign is binomial.
    The observed signs count as one draw, so p is never 0 (Phipson and Smyth, 2010).
    """
    generator = np.random.default_rng(seed)
    sizes, numbers = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    sums = np.zeros(flips, np.int64)
    for size, number in zip(sizes, numbers, strict=True):
        sums += size * (2 * generator.binomial(number, 0.5, flips) - number)
    as_large = np.count_nonzero(np.abs(sums) >= abs(differences.sum()))
    return float((1 + as_large) / (1 + flips))
