"""Interval and p of a difference between two systems: what they must be, on simulated utterances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.evaluation.paired import paired_difference, sign_flip_p
from speech.edits import EditCounts, resampled

COUNTS = st.builds(EditCounts, st.integers(0, 9), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))


def simulated(seed: int, utterances: int, more: float) -> tuple[list[EditCounts], list[EditCounts]]:
    """Two systems with a common difficulty of each utterance; B is wrong on a share `more` of words besides."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 20, utterances)
    difficulty = random.beta(1.0, 6.0, utterances)
    a = random.binomial(lengths, difficulty)
    b = random.binomial(lengths, difficulty + more * (1 - difficulty))
    first, second = (
        [EditCounts(hits=n - e, substitutions=e) for n, e in zip(lengths, errors, strict=True)] for errors in (a, b)
    )
    return first, second


def test_the_interval_covers_the_true_difference_of_19_in_20() -> None:
    """The mean of Beta(1, 6) is 1/7, so B's rate is higher by 0.05 · 6/7."""
    true = 0.05 * 6 / 7
    found = [paired_difference(*simulated(seed, 200, 0.05)) for seed in range(200)]
    covered = sum(d.low <= true <= d.high for d in found) / len(found)
    assert 0.91 <= covered <= 0.98, covered
    assert np.mean([d.difference for d in found]) == pytest.approx(true, abs=0.003)


def test_systems_that_do_not_differ_are_called_different_one_time_in_20() -> None:
    p = []
    for seed in range(600):
        a, b = simulated(seed, 100, 0.0)
        p.append(sign_flip_p(np.array([two.errors - one.errors for one, two in zip(a, b, strict=True)]), flips=2000))
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.065
    assert 0.4 <= np.mean(np.array(p) < 0.5) <= 0.52, "a little less than half: equal sums count as large"


def test_what_both_find_hard_does_not_widen_the_interval() -> None:
    a, b = simulated(1, 300, 0.05)
    paired = paired_difference(a, b)
    shuffled = paired_difference(a, [b[i] for i in np.random.default_rng(0).permutation(len(b))])
    assert shuffled.difference == pytest.approx(paired.difference)
    assert paired.high - paired.low < 0.8 * (shuffled.high - shuffled.low)


@given(st.lists(COUNTS, min_size=1, max_size=30))
def test_a_system_does_not_differ_from_itself(counts: list[EditCounts]) -> None:
    found = paired_difference(counts, counts)
    assert (found.difference, found.low, found.high, found.p, found.worse) == (0.0, 0.0, 0.0, 1.0, False)


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=30))
def test_exchanging_a_and_b_changes_the_signs(pairs: list[tuple[EditCounts, EditCounts]]) -> None:
    a, b = [one for one, _ in pairs], [two for _, two in pairs]
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.a, one.b, one.p) == (other.b, other.a, other.p)
    assert one.difference == -other.difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert 0.0 < one.p <= 1.0


def test_p_is_that_of_all_flips() -> None:
    """Against the exact share over all 2^10 flips of utterances with unlike differences."""
    differences = np.array([3, 2, -1, 1, 1, 4, 0, -2, 1, 2, 1, 0])
    moved = differences[differences != 0]
    signs = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
    exact = np.mean(np.abs(signs @ moved) >= abs(moved.sum()))
    assert sign_flip_p(differences, flips=100_000) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p(np.full(40, 1)) == pytest.approx(1 / 10_001), "never 0"


def test_draws_are_of_whole_utterances() -> None:
    counts = np.array([[1, 10, 1], [2, 20, 1], [3, 30, 1]])
    sums = resampled(counts, resamples=200, seed=3)
    assert (sums[:, 1] == 10 * sums[:, 0]).all() and (sums[:, 2] == 3).all()
    assert set(sums[:, 0]) == set(range(3, 10))
    assert (sums == resampled(counts, resamples=200, seed=3)).all()
