"""Phases are timed, and name themselves when they fail."""

from __future__ import annotations

import threading

import pytest

from cluster.monitoring.phases import PhaseTimer
from speech.errors import PhaseTimeoutError


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_add_up_in_each_step() -> None:
    clock = Clock()
    seen: list[str] = []
    timer = PhaseTimer(on_phase=seen.append, clock=clock)
    for step, seconds in ((1, 3.0), (2, 5.0)):
        timer.start_step(step)
        for _ in range(2):
            with timer.phase("generate"):
                clock.now += seconds
        with timer.phase("learn"):
            clock.now += 1.0
        clock.now += 1.0
        metrics = timer.finish_step()
        assert metrics["time/generate"] == 2 * seconds
        assert metrics["time/step"] == 2 * seconds + 2
        assert metrics["time/idle_fraction"] == pytest.approx(1 / (2 * seconds + 2))
        clock.now += 50.0  # between steps
    assert seen == ["generate", "generate", "learn"] * 2


def test_overlapping_work_counts_once_and_waiting_is_idle() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    timer.start_step(1)
    with timer.phase("generate"):
        clock.now += 2.0
        with timer.phase("reward"):
            clock.now += 2.0
    with timer.phase("wait", waiting=True):
        clock.now += 4.0
    metrics = timer.finish_step()
    assert metrics == {
        "time/reward": 2.0,
        "time/generate": 4.0,
        "time/wait": 4.0,
        "time/step": 8.0,
        "time/idle_fraction": 0.5,
    }


def test_time_out_names_phase_and_step() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    timer.start_step(12)
    with (
        pytest.raises(PhaseTimeoutError, match="phase `publish` did not end within 30 s") as caught,
        timer.phase("publish", timeout_s=30) as phase,
    ):
        assert phase.remaining() == 30.0
        clock.now += 20.0
        assert phase.remaining() == 10.0
        clock.now += 20.0
        phase.remaining()
    assert (caught.value.phase, caught.value.seconds) == ("publish", 30)
    assert caught.value.__notes__ == ["in phase `publish` of step 12"]


def test_a_time_out_from_inside_becomes_the_phases() -> None:
    timer = PhaseTimer(clock=Clock())
    with (
        pytest.raises(PhaseTimeoutError, match="phase `inner`") as caught,
        timer.phase("outer"),
        timer.phase("inner", 5),
    ):
        raise TimeoutError("Get timed out: some object(s) not ready.")
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_time_out_that_names_its_own_phase_keeps_the_name() -> None:
    raises = pytest.raises(PhaseTimeoutError, match="engine 0 is stale")
    with raises as caught, PhaseTimer().phase("switch", 5):
        raise PhaseTimeoutError("engine sleep", 4.0, "engine 0 is stale")
    assert caught.value.phase == "engine sleep" and caught.value.__notes__ == ["in phase `switch`"]


def test_rays_time_out_is_one() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    with pytest.raises(PhaseTimeoutError), PhaseTimer().phase("encode", 1):
        raise exceptions.GetTimeoutError("not ready")


def test_errors_keep_their_type_and_are_timed() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    timer.start_step(3)
    with pytest.raises(ZeroDivisionError) as caught, timer.phase("learn"):
        clock.now += 2.0
        raise ZeroDivisionError("x")
    assert caught.value.__notes__ == ["in phase `learn` of step 3"]
    assert timer.finish_step()["time/learn"] == 2.0


def test_no_budget_is_no_limit() -> None:
    with PhaseTimer().phase("generate") as phase:
        assert phase.remaining() is None


def test_phases_of_other_threads_count_in_the_step_in_which_they_end() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    begun, end = threading.Event(), threading.Event()

    def sample() -> None:
        with timer.phase("generate"):
            begun.set()
            assert end.wait(10)

    thread = threading.Thread(target=sample)
    timer.start_step(1)
    thread.start()
    assert begun.wait(10)
    with timer.phase("learn"):
        clock.now += 2.0
    first = timer.finish_step()
    assert first == {"time/learn": 2.0, "time/step": 2.0, "time/idle_fraction": 0.0}
    timer.start_step(2)
    clock.now += 3.0
    end.set()
    thread.join()
    clock.now += 1.0
    assert timer.finish_step() == {"time/generate": 5.0, "time/step": 4.0, "time/idle_fraction": 0.25}
    assert {span.name for span in timer.spans.take()} == {"learn", "generate"}
