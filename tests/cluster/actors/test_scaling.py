"""Simulated: engines and learner are arithmetic here, only the policy is real."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.actors.scaling import FleetClock, Observation, PoolScaler, ScalingPolicy, waiting_shares
from speech.runtime.spans import Span


def step(engines: int, ideal: float, overlapped: bool, noise: float = 1.0) -> Observation:
    """A step whose rollouts take `ideal` / `engines` times as long as learning."""
    rollout = ideal / engines * noise
    wall = max(rollout, 1.0) if overlapped else rollout + 1.0
    return Observation(engines, waiting=max(0.0, wall - 1.0) / wall, busy=rollout / wall)


def simulate(
    policy: ScalingPolicy, start: int, ideal: float, overlapped: bool, steps: int, noise: float = 0.0
) -> list[int]:
    random_ = random.Random(0)
    sizes = [start]
    for _ in range(steps):
        sizes.append(policy.observe(step(sizes[-1], ideal, overlapped, 1 + random_.uniform(-noise, noise))))
    return sizes


@settings(deadline=None, max_examples=200)
@given(start=st.integers(1, 1000), ideal=st.floats(0.2, 1500), overlapped=st.booleans(), noise=st.floats(0, 0.1))
def test_it_converges_and_never_turns_back(start: int, ideal: float, overlapped: bool, noise: float) -> None:
    sizes = simulate(ScalingPolicy(1, 1000), start, ideal, overlapped, steps=120, noise=noise)
    changes = [b - a for a, b in itertools.pairwise(sizes) if a != b]
    assert all(c > 0 for c in changes) or all(c < 0 for c in changes), "no oscillation"
    # Where the ideal lies at the margin, noise decides when the last change comes; after it the margin is far away.
    assert len(set(sizes[60:])) <= 2, "settled"
    wanted = min(max(ideal, 1), 1000)
    assert wanted / (1.25 * 1.25) <= sizes[-1] + 1 and sizes[-1] - 1 <= wanted * 1.25 / 0.75


@pytest.mark.parametrize("ideal", [1, 7, 64, 1000])
def test_from_one_engine_it_doubles_until_the_learner_no_longer_waits(ideal: int) -> None:
    sizes = simulate(ScalingPolicy(1, 1000), 1, ideal, overlapped=True, steps=60)
    assert sizes[-1] >= ideal / 1.25
    assert all(b <= 2 * a for a, b in itertools.pairwise(sizes))
    assert sum(a != b for a, b in itertools.pairwise(sizes)) <= math.ceil(math.log2(max(ideal, 2))) + 1


def test_one_odd_step_changes_nothing() -> None:
    policy = ScalingPolicy(1, 16)
    for _ in range(10):
        assert policy.observe(Observation(4, waiting=0.9, busy=1.0)) == 4
        assert policy.observe(Observation(4, waiting=0.9, busy=1.0)) == 4
        assert policy.observe(Observation(4, waiting=0.0, busy=1.0)) == 4


def test_bounds_hold() -> None:
    policy = ScalingPolicy(2, 3, patience=1)
    assert policy.observe(Observation(3, waiting=0.9, busy=1.0)) == 3
    assert policy.observe(Observation(3, waiting=0.0, busy=0.01)) == 2
    assert policy.observe(Observation(1, waiting=0.0, busy=1.0)) == 2
    for wrong in ((0, 1), (3, 2)):
        with pytest.raises(ValueError):
            ScalingPolicy(*wrong)


def test_the_clock_tells_waiting_and_busy_shares() -> None:
    clock = FleetClock()
    assert clock.take() is None
    clock.advance(100.0, engines=2, busy=0, waiting=False)
    clock.advance(104.0, engines=2, busy=2, waiting=True)  # 4 s, both at work, waited for
    clock.advance(105.0, engines=2, busy=1, waiting=True)  # 1 s, one of them
    clock.advance(110.0, engines=2, busy=0, waiting=False)  # 5 s of learning
    assert clock.take() == Observation(2, waiting=0.5, busy=9 / 20)
    clock.advance(111.0, engines=2, busy=0, waiting=False)
    assert clock.take() is None, "nobody had work"


def test_the_learner_waits_for_what_is_nearest_to_it() -> None:
    controller = [
        Span("wait", 0.0, 6.0),
        Span("encode", 0.0, 2.0),
        Span("generate", 1.5, 4.0),
        Span("encode", 3.0, 9.0),  # of later windows
        Span("reward", 4.0, 5.0),
        Span("learn", 6.0, 10.0),
        Span("generate", 5.0, 10.0),
    ]
    assert waiting_shares(controller, 0.0, 10.0) == {
        "reward": pytest.approx(0.1),
        "generate": pytest.approx(0.35),
        "encode": pytest.approx(0.15),
    }
    assert waiting_shares(controller, 10.0, 10.0) == {"reward": 0.0, "generate": 0.0, "encode": 0.0}


class FakePool:
    """Actors that come at once, or not at all."""

    def __init__(self, size: int) -> None:
        self.wanted = self.size = size

    def serving(self) -> int:
        return self.size

    def resize(self, wanted: int) -> None:
        self.wanted = self.size = wanted


def scored(scaler: PoolScaler, pool: FakePool, work: float, other: float = 1.0) -> None:
    """A step in which nothing overlaps: `work` seconds of scoring on all actors, and `other` seconds of all else."""
    end = work / pool.size + other
    spans = {f"rewards {i}": [Span("score", other, end)] for i in range(pool.size)} | {"encoder 0": []}
    controller = [Span("learn", 0.0, other), Span("wait", other, end), Span("reward", other, end)]
    scaler.rescale(waiting_shares(controller, 0.0, end), spans, 0.0, end)


def test_a_pool_grows_until_its_work_takes_as_long_as_all_else_and_shrinks_again() -> None:
    pool = FakePool(1)
    scaler = PoolScaler(pool, "rewards", "reward", 1, 8)
    for _ in range(12):
        scored(scaler, pool, work=4.0)
    assert pool.size == 4
    for _ in range(12):
        scored(scaler, pool, work=100.0)
    assert pool.size == 8
    for _ in range(12):
        scored(scaler, pool, work=0.1)
    assert pool.size == 1


def test_a_pool_that_is_not_what_it_was_resized_to_is_not_judged() -> None:
    pool = FakePool(2)
    scaler = PoolScaler(pool, "rewards", "reward", 2, 8)
    for _ in range(3):
        scored(scaler, pool, work=100.0)
    assert pool.wanted == 4
    pool.size = 3  # one still starts
    for _ in range(9):
        scored(scaler, pool, work=100.0)
    assert pool.wanted == 4
    pool.wanted = pool.size = 1  # others did not start: it is below its bounds
    scored(scaler, pool, work=0.1)
    assert pool.wanted == 2


def test_a_step_without_work_says_nothing() -> None:
    pool = FakePool(2)
    scaler = PoolScaler(pool, "rewards", "reward", 1, 8)
    for _ in range(9):
        scaler.rescale({"reward": 0.0}, {"rewards 0": [], "rewards 1": []}, 0.0, 1.0)
    assert pool.wanted == 2
