"""Who comes, who goes, and in which place, without actors."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from speech.runtime.roster import PoolActor, Roster, free_place


@dataclass(slots=True, eq=False, kw_only=True)
class Hand(PoolActor):
    busy: bool = False


@dataclass
class Ship(Roster[Hand]):
    """Members without actors, and who was ended."""

    ended: list[Hand] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__("sail", 0)

    def _start(self, place: int) -> Hand:
        return Hand(place=place, actor=None, deadline=0.0)

    def _is_busy(self, member: Hand) -> bool:
        return member.busy

    def end(self, member: Hand) -> None:
        self._members.remove(member)
        self.ended.append(member)


def crew(wanted: int, started: int) -> Ship:
    ship = Ship()
    ship.wanted = wanted
    ship.adjust()
    for member in list(ship)[:started]:
        member.node = f"node {member.place}"
    return ship


@given(st.lists(st.integers(0, 5), min_size=1), st.data())
def test_those_who_stay_are_as_many_as_wanted_and_no_two_share_a_place(wanted: list[int], data: st.DataObject) -> None:
    ship = crew(0, 0)
    for number in wanted:
        ship.wanted = number
        for member in ship:
            member.busy = data.draw(st.booleans())
        busy = [member for member in ship if member.busy]
        ship.adjust()
        assert sum(not member.leaving for member in ship) == number
        assert all(member.busy for member in ship if member.leaving), "who has nothing to do is gone"
        assert all(member in list(ship) for member in busy), "who has something to do is not ended"
        places = [member.place for member in ship]
        assert len(set(places)) == len(places)


def test_those_who_still_start_go_first() -> None:
    ship = crew(3, 0)
    last = list(ship)[2]
    last.node = "node"
    ship.wanted = 1
    ship.adjust()
    assert list(ship) == [last]


def test_who_is_on_a_node_that_goes_is_replaced_once() -> None:
    ship = crew(2, 2)
    leaver, stays = ship
    leaver.busy = True
    for _ in range(2):
        ship.leave_nodes({"node 0"})
        ship.adjust()
    assert ship.replaced == 1 and leaver.leaving and not stays.leaving
    assert [member.place for member in ship] == [0, 1, 2]
    leaver.busy = False
    ship.adjust()
    assert ship.ended == [leaver] and [member.place for member in ship] == [1, 2]


def test_one_that_does_not_start_is_done_without_only_where_others_serve() -> None:
    ship = crew(2, 1)
    serving, stuck = ship
    assert ship.do_without(stuck, "no room") and ship.wanted == 1 and ship.ended == [stuck]
    serving.leaving = True
    ship.adjust()
    (fresh,) = (member for member in ship if not member.leaving)
    assert not ship.do_without(fresh, "no room") and ship.wanted == 1 and fresh in list(ship)


@given(st.sets(st.integers(0, 20)))
def test_a_free_place_is_the_lowest(taken: set[int]) -> None:
    place = free_place(taken)
    assert place not in taken and set(range(place)) <= taken
