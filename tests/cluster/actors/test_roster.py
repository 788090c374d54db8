"""Who comes, who goes, and in which place, without actors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.actors.roster import ATTEMPTS, PoolActor, Roster, StartError, free_place


def start(place: int) -> PoolActor:
    return PoolActor(place=place, actor=None, ready=None, deadline=0.0)


def crew(wanted: int, started: int) -> tuple[Roster, list[PoolActor]]:
    """A roster, and those that it has ended."""
    ended: list[PoolActor] = []
    roster = Roster("sail", wanted, start, ended.append)
    roster.adjust()
    for actor in list(roster)[:started]:
        roster.started(actor, f"node {actor.place}")
    return roster, ended


@given(st.lists(st.integers(0, 5), min_size=1), st.data())
def test_those_who_stay_are_as_many_as_wanted_and_no_two_share_a_place(wanted: list[int], data: st.DataObject) -> None:
    roster, _ = crew(0, 0)
    for number in wanted:
        roster.wanted = number
        for actor in roster:
            actor.calls = ["a call"] * data.draw(st.integers(0, 1))
        busy = [actor for actor in roster if actor.calls]
        roster.adjust()
        assert len(roster.staying()) == number
        assert all(actor.calls for actor in roster if actor.leaving), "who has nothing to do is gone"
        assert all(actor in list(roster) for actor in busy), "who has something to do is not ended"
        places = [actor.place for actor in roster]
        assert len(set(places)) == len(places)


def test_those_who_still_start_go_first() -> None:
    roster, _ = crew(3, 0)
    last = list(roster)[2]
    roster.started(last, "node")
    roster.wanted = 1
    roster.adjust()
    assert list(roster) == [last]


def test_who_is_on_a_node_that_goes_is_replaced_once() -> None:
    roster, ended = crew(2, 2)
    leaver, stays = roster
    leaver.calls = ["a call"]
    for _ in range(2):
        roster.leave_nodes({"node 0"})
        roster.adjust()
    assert roster.replaced == 1 and leaver.leaving and not stays.leaving
    assert [actor.place for actor in roster] == [0, 1, 2] and roster.serving() == [stays]
    leaver.calls.clear()
    roster.adjust()
    assert ended == [leaver] and [actor.place for actor in roster] == [1, 2]


def test_one_that_does_not_start_is_done_without_only_where_others_serve() -> None:
    roster, ended = crew(2, 1)
    serving, stuck = roster
    roster.not_started(stuck, "no room")
    assert (roster.wanted, roster.replaced, ended) == (1, 0, [stuck])
    serving.leaving = True
    roster.adjust()
    (fresh,) = roster.staying()
    roster.not_started(fresh, "no room")
    roster.adjust()
    assert (roster.wanted, roster.replaced, len(roster.staying())) == (1, 1, 1)


def test_starts_that_fail_in_a_row_are_counted_where_nobody_serves() -> None:
    roster, _ = crew(1, 0)

    def fail(times: int) -> None:
        for _ in range(times):
            (actor,) = roster
            roster.not_started(actor, "no model")
            roster.adjust()

    fail(ATTEMPTS - 1)
    (actor,) = roster
    roster.started(actor, "node")
    roster.lost(actor, "died")
    roster.adjust()
    fail(ATTEMPTS - 1)
    with pytest.raises(StartError, match="sail: no actor starts, 3 attempts failed: no model"):
        fail(1)
    roster.adjust()
    fail(ATTEMPTS - 1)


def test_a_loss_that_two_threads_notice_counts_once_and_one_that_leaves_is_not_replaced() -> None:
    roster, ended = crew(2, 2)
    lost, leaver = roster
    for _ in range(2):
        roster.lost(lost, "died")
    assert (roster.replaced, ended) == (1, [lost])
    leaver.leaving = True
    roster.lost(leaver, "died")
    assert (roster.replaced, ended) == (1, [lost, leaver])
    roster.adjust()
    assert [actor.place for actor in roster] == [0, 1]


@given(st.sets(st.integers(0, 20)))
def test_a_free_place_is_the_lowest(taken: set[int]) -> None:
    place = free_place(taken)
    assert place not in taken and set(range(place)) <= taken
