"""The schedule simulation obeys what must hold of any schedule (benchmarks/schedule_simulation.py)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.schedule_simulation import DEMO, STAGES, STREAMS, Phase, Schedule, bound, simulate

SECONDS = st.dictionaries(st.sampled_from(STAGES), st.floats(0.1, 10.0), min_size=len(STAGES))


def own(seconds: dict[str, float]) -> dict[str, Phase]:
    return {stage: Phase(seconds[stage], stage) for stage in STAGES}


@settings(max_examples=60, deadline=None)
@given(SECONDS)
def test_without_staleness_phases_follow_one_another(seconds: dict[str, float]) -> None:
    schedule = Schedule(own(seconds), 0, steps=16)
    assert simulate(schedule) == pytest.approx(sum(seconds.values()), rel=1e-6)
    assert bound(schedule) == pytest.approx(sum(seconds.values()), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    SECONDS,
    st.integers(0, 4),
    st.sampled_from(["drain", "inflight"]),
    st.sampled_from([None, 2.0]),
    st.sampled_from(list(STREAMS)),
)
def test_overlap_beats_neither_the_bound_nor_loses_to_no_overlap(
    seconds: dict[str, float], staleness: int, update: str, cores: float | None, streams: str
) -> None:
    phases = {stage: Phase(seconds[stage], stage, cores=1.5) for stage in STAGES}
    schedule = Schedule(phases, staleness, update, cores, steps=400, streams=streams)
    took = simulate(schedule)
    # Measured between two publications, of which the first may have waited for another phase and the second not: the
    # time per step may come out shorter by at most that, which is little over a long stretch.
    waited = max(seconds.values()) / (schedule.steps // 2)
    assert took >= bound(schedule) - waited
    assert took <= sum(seconds.values()) * (1 + 1e-6)


def test_cores_that_are_busy_anyway_gain_nothing() -> None:
    phases = {stage: Phase(seconds, stage, cores=2.0) for stage, seconds in DEMO.items()}
    assert simulate(Schedule(phases, 1, cores=2.0)) == pytest.approx(sum(DEMO.values()))


def test_streams_hide_rewards_and_learning_behind_the_samples_that_are_late() -> None:
    """8 parts, the first at 3 s of 10, the others 1 s apart: of each, the last part alone comes after the samples."""
    phases = own({"encode": 1.0, "generate": 10.0, "reward": 4.0, "learn": 8.0, "publish": 1.0})
    took = {streams: simulate(Schedule(phases, 0, streams=streams)) for streams in STREAMS}
    assert took[""] == pytest.approx(24.0)
    assert took["rewards"] == pytest.approx(1 + 10 + 0.5 + 8 + 1)
    assert took["rewards, learner"] == pytest.approx(1 + 10 + 0.5 + 1 + 1)


def test_a_learner_that_is_slower_than_the_samples_begins_with_the_first() -> None:
    phases = own({"encode": 1.0, "generate": 10.0, "reward": 0.8, "learn": 16.0, "publish": 1.0})
    assert simulate(Schedule(phases, 0, streams="rewards, learner")) == pytest.approx(1 + 3 + 0.1 + 16 + 1)


def test_a_slow_learner_hides_everything_else() -> None:
    phases = own({"encode": 1.0, "generate": 2.0, "reward": 1.0, "learn": 10.0, "publish": 1.0})
    assert simulate(Schedule(phases, 0)) == pytest.approx(15.0)
    assert simulate(Schedule(phases, 1)) == pytest.approx(11.0)
