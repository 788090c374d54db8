"""Properties of the advantage estimators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.batches.advantage import compute_advantages, compute_batch_advantages, is_zero_variance
from learner.registries import ADVANTAGES
from speech.errors import UserError

NAMES = ("group_std", "group_mean", "leave_one_out")
OVER_BATCH = ("reinforce_pp", "reinforce_pp_baseline")
# Rewards in steps of 1/64 keep sums exact, so that properties can be tested tightly.
reward = st.integers(-256, 256).map(lambda n: n / 64)
rewards_and_validity = st.lists(st.tuples(reward, st.booleans()), min_size=1, max_size=12)
any_name = st.sampled_from(NAMES)


def _split(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r for r, _ in pairs]), np.array([v for _, v in pairs])


@given(rewards_and_validity, any_name)
def test_invalid_samples_get_nothing_and_count_for_nothing(pairs: list[tuple[float, bool]], name: str) -> None:
    rewards, valid = _split(pairs)
    result = compute_advantages(name, rewards, valid)
    assert result.shape == rewards.shape and (result[~valid] == 0).all()
    alone = compute_advantages(name, rewards[valid], np.ones(valid.sum(), dtype=bool))
    np.testing.assert_array_equal(result[valid], alone)
    # Whatever stands in an invalid place is never looked at.
    np.testing.assert_array_equal(compute_advantages(name, np.where(valid, rewards, np.nan), valid), result)


@given(rewards_and_validity, any_name)
def test_zero_variance_and_tiny_groups_are_all_zeros(pairs: list[tuple[float, bool]], name: str) -> None:
    rewards, valid = _split(pairs)
    zero = is_zero_variance(rewards, valid)
    assert zero == (len(set(rewards[valid])) < 2)
    assert zero == (not compute_advantages(name, rewards, valid).any())


@given(rewards_and_validity, any_name, st.integers(-64, 64), st.randoms())
def test_shift_invariance_zero_sum_and_equivariance(
    pairs: list[tuple[float, bool]], name: str, shift: int, random: object
) -> None:
    rewards, valid = _split(pairs)
    result = compute_advantages(name, rewards, valid)
    np.testing.assert_allclose(compute_advantages(name, rewards + shift, valid), result, atol=1e-9)
    assert abs(result.sum()) < 1e-9
    order = list(range(len(rewards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(compute_advantages(name, rewards[order], valid[order]), result[order], atol=1e-9)


@given(rewards_and_validity, st.integers(1, 50))
def test_scale(pairs: list[tuple[float, bool]], scale: int) -> None:
    rewards, valid = _split(pairs)
    for name, factor in (("group_std", 1), ("group_mean", scale), ("leave_one_out", scale)):
        scaled = compute_advantages(name, rewards * scale, valid)
        # group_std is scale-free up to its epsilon, 1e-6 against a deviation of at least 1/64/√12.
        np.testing.assert_allclose(scaled, compute_advantages(name, rewards, valid) * factor, rtol=1e-3, atol=1e-9)


def test_values_by_hand() -> None:
    rewards, valid = [1.0, 0.0, 9.0, 0.5], [True, True, False, True]
    np.testing.assert_allclose(compute_advantages("group_mean", rewards, valid), [0.5, -0.5, 0, 0])
    np.testing.assert_allclose(compute_advantages("group_std", rewards, valid), [1, -1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(compute_advantages("leave_one_out", rewards, valid), [0.75, -0.75, 0, 0])


@given(st.lists(reward, min_size=2, max_size=12))
def test_leave_one_out_is_a_rescaled_group_mean(values: list[float]) -> None:
    valid = [True] * len(values)
    mean, others = (compute_advantages(name, values, valid) for name in ("group_mean", "leave_one_out"))
    np.testing.assert_allclose(others, mean * len(values) / (len(values) - 1), atol=1e-9)


def test_rounding_is_not_variance() -> None:
    rewards = [0.1 + 0.2, 0.3, 0.3]
    assert rewards[0] != rewards[1]
    assert is_zero_variance(rewards, [True] * 3)
    assert not compute_advantages("group_std", rewards, [True] * 3).any()


def test_what_a_judge_hears_twice_is_no_variance_and_one_word_in_a_thousand_is() -> None:
    noise = np.random.default_rng(0).normal(0.7, 1e-5, 8).astype(np.float32)
    assert is_zero_variance(noise, [True] * 8) and not is_zero_variance([0.5, 0.501], [True] * 2)
    assert is_zero_variance(noise * 1000, [True] * 8), "relative to their size"
    assert not is_zero_variance([999.0, 1000.0], [True] * 2)


@given(st.lists(rewards_and_validity, min_size=1, max_size=5))
def test_over_the_batch_advantages_have_mean_0_and_deviation_1(groups: list[list[tuple[float, bool]]]) -> None:
    """As one would write it: over all valid samples; the baseline takes each group's mean off before."""
    split = [_split(pairs) for pairs in groups]
    split = [(rewards, valid) for rewards, valid in split if valid.sum() > 1]
    for name in OVER_BATCH:
        found = compute_batch_advantages(name, split)
        values = [rewards[valid] - (rewards[valid].mean() if name != "reinforce_pp" else 0) for rewards, valid in split]
        together = np.concatenate(values) if values else np.zeros(0)
        deviation = together.std(ddof=1) if len(together) > 1 and np.ptp(together) > 1e-3 else np.inf
        mean = together.mean() if len(together) else 0.0
        for (_, valid), advantages, own in zip(split, found, values, strict=True):
            np.testing.assert_allclose(advantages[valid], (own - mean) / deviation, rtol=1e-3, atol=1e-9)
            assert (advantages[~valid] == 0).all()


def test_estimators_of_groups_see_one_group_at_a_time() -> None:
    groups = [([1.0, 0.0, 9.0], [True, True, False]), ([0.25, 0.5], [True, True])]
    for name in NAMES:
        for (rewards, valid), found in zip(groups, compute_batch_advantages(name, groups), strict=True):
            np.testing.assert_array_equal(found, compute_advantages(name, rewards, valid))


def test_gdpo_is_each_part_normalised_and_the_sum_normalised_over_the_batch() -> None:
    """2601.05242: rewards of two parts with weights 1 and 0.5, three samples in each of two groups."""
    parts = np.array([[[1.0, 0.0, 0.0], [5.0, 5.0, 9.0]], [[0.0, 0.5, 1.0], [2.0, 8.0, 2.0]]])
    normalised = (parts - parts.mean(2, keepdims=True)) / parts.std(2, keepdims=True)
    sums = normalised[:, 0] + 0.5 * normalised[:, 1]
    found = compute_batch_advantages("reinforce_pp_baseline", [(total, [True] * 3) for total in sums])
    np.testing.assert_allclose(np.stack(found), (sums - sums.mean()) / sums.std(ddof=1), rtol=1e-4, atol=1e-9)


def test_bad_input_and_registry() -> None:
    with pytest.raises(UserError, match="unknown advantage 'gae'; known are group_mean, group_std, leave_one_out"):
        compute_advantages("gae", [1.0], [True])
    with pytest.raises(ValueError, match="not finite"):
        compute_advantages("group_std", [1.0, float("nan")], [True, True])
    with pytest.raises(ValueError, match="must both be"):
        compute_advantages("group_std", [1.0, 2.0], [True])
    assert sorted(ADVANTAGES) == sorted([*NAMES, *OVER_BATCH])
