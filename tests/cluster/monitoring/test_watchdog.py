"""The watchdog: when it reports, what it says, and its thread on a real clock."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from cluster.monitoring.phases import PhaseTimer
from cluster.monitoring.watchdog import StallDetector, Waiting, Watchdog


def test_reports_after_the_limit_and_then_each_time_the_stall_has_doubled() -> None:
    detector = StallDetector(600, now=0)
    learn = [Waiting("generate", 20), Waiting("learn", 650)]
    reports = {t: r for t in range(0, 7201, 60) if (r := detector.look((4, 9), learn, t))}
    assert list(reports) == [600, 1200, 2400, 4800]
    assert reports[600] == (
        "no progress for 10 minutes: waiting in phase `learn` on learner ranks; "
        "waiting in phase `generate` on engine actors"
    )
    assert detector.look((5, 9), learn, 7300) is None, "progress"
    assert detector.look((5, 9), [], 7300 + 599) is None
    assert detector.look((5, 9), [], 7300 + 600) == "no progress for 10 minutes: between phases"


@given(st.lists(st.tuples(st.floats(0.1, 500), st.booleans()), max_size=60), st.floats(60, 1200))
def test_never_before_the_limit_and_always_after_it(looks: list[tuple[float, bool]], limit: float) -> None:
    detector = StallDetector(limit, now=0)
    now = since = 0.0
    progress, reported = 0, False
    detector.look(progress, [], now)
    for wait, moved in looks:
        now += wait
        if moved:
            progress, since, reported = progress + 1, now, False
        report = detector.look(progress, [], now)
        assert report is None or now - since >= limit
        reported = reported or report is not None
        assert reported == (now - since >= limit)


def test_thread_names_phase_and_line_and_says_when_things_move_again() -> None:
    timer = PhaseTimer()
    timer.start_step(3)
    reports: list[str | None] = []
    stalled, moving = threading.Event(), threading.Event()

    def report(text: str | None) -> None:
        reports.append(text)
        (stalled if text else moving).set()

    with Watchdog(timer, 0.2 / 60, report):
        with timer.phase("reward"):
            assert stalled.wait(10)
        with timer.phase("learn"):
            assert moving.wait(10)
    assert reports[0] is not None and "waiting in phase `reward` on reward actors; the controller is in " in reports[0]
    assert (
        "test_thread_names_phase_and_line" in reports[0] and "tests/cluster/monitoring/test_watchdog.py:" in reports[0]
    )
    assert not timer.open_phases()


def test_zero_never_looks() -> None:
    before = threading.active_count()
    with Watchdog(PhaseTimer(), 0, lambda _: None):
        time.sleep(0.01)
        assert threading.active_count() == before
