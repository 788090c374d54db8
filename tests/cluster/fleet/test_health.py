from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.health import BACKOFF_S, LIVING, Health, HealthLimits, Outage, State

LIMITS = HealthLimits(suspect_s=5, dead_s=20, failures=3)

EVENTS = st.one_of(
    st.tuples(st.just("expect"), st.integers(1, 4)),
    st.tuples(st.just("verified"), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
    st.tuples(
        st.sampled_from(["started", "worked", "asked", "answered", "failed", "restart", "drain", "retire"]), st.just(0)
    ),
)


def apply(health: Health, event: str, value: int, now: float) -> bool:
    """Whether the machine accepted the event."""
    arguments = {
        "expect": (value,),
        "verified": (value,),
        "asked": (now,),
        "failed": ("test", now),
        "restart": (now,),
    }.get(event, ())
    try:
        getattr(health, event)(*arguments)
    except ValueError:
        return False
    return True


@given(st.lists(EVENTS, max_size=60))
def test_only_the_verified_current_publication_makes_an_engine_serve(events: list[tuple[str, int]]) -> None:
    health, now = Health(LIMITS), 0.0
    expected = proven = asked = None  # what an observer outside knows
    for event, value in events:
        before = health.state
        if event == "wait":
            now += value
            health.check(now)
            if health.state is State.DEAD and before is not State.DEAD:
                assert asked is not None and now - asked >= LIMITS.dead_s
                proven = asked = None
        elif apply(health, event, value, now):
            expected = value if event == "expect" else expected
            proven = value if event == "verified" else None if event == "failed" else proven
            if event == "asked" and asked is None:
                asked = now
            became_stale = before in (State.HEALTHY, State.SUSPECT) and health.state is State.STALE
            if event in ("answered", "failed", "expect") or became_stale:
                asked = None
        else:
            assert health.state is before, "a refused event changes nothing"
        if health.serves:
            assert proven == expected is not None
        if health.state is State.HEALTHY and before is not State.HEALTHY:
            allowed = {(State.STALE, "verified"), (State.SUSPECT, "answered"), (State.SUSPECT, "expect")}
            assert (before, event) in allowed
        if before is State.DEAD and health.state is not before:
            assert health.state in (State.RESTARTING, State.RETIRED)
            assert health.state is State.RETIRED or now >= health.restart_at
        if before is State.RESTARTING and health.state is not before:
            assert health.state in (State.STALE, State.DEAD, State.DRAINING)
        if before is State.RETIRED:
            assert health.state is State.RETIRED
        if before is State.DRAINING:
            assert health.state in (State.DRAINING, State.DEAD, State.RETIRED)


def healthy() -> Health:
    health = Health(LIMITS)
    health.expect(1)
    health.started()
    health.verified(1)
    assert health.serves
    return health


def test_silence_makes_an_engine_suspect_and_then_dead() -> None:
    health = healthy()
    health.check(1000.0)
    assert health.serves, "no question was asked"
    health.asked(1000.0)
    health.check(1004.9)
    assert health.serves
    health.check(1005.0)
    assert health.state is State.SUSPECT and not health.serves
    health.asked(1010.0)  # asking again does not reset the clock
    health.answered()
    assert health.serves
    health.asked(1100.0)
    health.check(1120.0)
    assert health.state is State.DEAD and health.reason == "no answer to a heartbeat for 20 s"


def test_a_restarted_engine_is_stale_until_the_current_publication() -> None:
    health = healthy()
    health.failed("killed", 5.0)
    health.restart(5.0)
    health.expect(2)
    health.started()
    health.verified(1)  # a refit that was under way when publication 2 came
    assert health.state is State.STALE
    health.verified(2)
    assert health.serves
    health.expect(3)
    assert health.state is State.STALE


def test_failures_count_in_a_row() -> None:
    health, now = healthy(), 0.0
    for expected in (1, 2):
        health.failed("x", now)
        assert health.failures == expected and not health.exhausted
        now = health.restart_at
        health.restart(now)
        health.started()
        health.verified(1)
    health.worked()
    assert health.failures == 0
    for _ in range(3):
        assert not health.exhausted
        health.failed("x", now)
        if not health.exhausted:
            now = health.restart_at
            health.restart(now)
    assert health.exhausted


@given(
    backoff=st.one_of(st.just(0.0), st.floats(0.001, 100)),
    more=st.floats(0, 1000),
    failures=st.integers(1, 10_000),
    start=st.floats(0, 1e6),
)
def test_restarts_in_a_row_wait_longer_and_longer_but_the_first_does_not(
    backoff: float, more: float, failures: int, start: float
) -> None:
    limits = HealthLimits(5, 20, 10_001, backoff, backoff + more)
    assert limits.backoff(1) == 0.0
    wait, longer = limits.backoff(failures), limits.backoff(failures + 1)
    assert wait <= longer <= limits.backoff_cap_s
    assert longer == limits.backoff_cap_s or longer == (2 * wait if failures > 1 else backoff)
    health = Health(limits)
    health.failures = failures - 1
    health.failed("x", start)
    assert health.restart_at == start + wait
    if start + wait / 2 < health.restart_at:
        with pytest.raises(ValueError, match="may not be started for"):
            health.restart(start + wait / 2)
        assert health.state is State.DEAD
    health.restart(health.restart_at)
    assert health.state is State.RESTARTING


def test_finished_work_ends_the_row_and_with_it_the_wait() -> None:
    health, now = healthy(), 100.0
    for _ in range(2):
        health.failed("x", now)
        now = health.restart_at
        health.restart(now)
        health.started()
        health.verified(1)
    assert now == 100.0 + BACKOFF_S
    health.worked()
    health.failed("x", now)
    assert health.restart_at == now


def test_an_outage_is_borne_for_a_while_from_its_first_error() -> None:
    outage = Outage(60.0)
    outage.over()
    assert not outage.lasts_too_long(1000.0)
    assert outage.failed(100.0) and not outage.failed(110.0)
    assert not outage.lasts_too_long(159.0) and outage.lasts_too_long(160.0)
    outage.over()
    assert not outage.failed(165.0), "it comes and goes, which is known"
    assert not outage.lasts_too_long(224.0) and outage.lasts_too_long(225.0)
    outage.over()
    assert outage.failed(300.0), "another one"


def test_limits_are_checked_and_living_states_answer() -> None:
    with pytest.raises(ValueError):
        HealthLimits(5, 5, 1)
    with pytest.raises(ValueError):
        HealthLimits(1, 2, 0)
    with pytest.raises(ValueError):
        HealthLimits(1, 2, 1, 60.0, 30.0)
    assert State.RESTARTING not in LIVING and State.DEAD not in LIVING


def test_an_engine_that_died_of_its_work_starts_at_once_with_a_clean_record() -> None:
    health = Health(HealthLimits(5, 20, 3))
    for now in (0.0, 100.0):
        health.failed("lost", now)
        if now == 0.0:
            health.restart(now)
            health.started()
    assert health.failures == 2 and health.restart_at > 100.0
    health.excused(100.0)
    assert health.failures == 0
    health.restart(100.0)
