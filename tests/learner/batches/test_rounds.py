"""Rounds of micro-batches, cut while groups come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import balance_ranks
from learner.batches.rounds import Rounds
from speech.records import PromptLayout


def group(index: int, length: int) -> TrainGroup:
    return TrainGroup(PromptLayout((1,), 0, 0), (Sample((2,) * (length - 1), (), 0.0),), index)


LENGTHS = st.lists(st.integers(2, 40), max_size=30)


@given(lengths=LENGTHS, ranks=st.integers(1, 4), budget=st.integers(20, 100), parts=st.data())
def test_cuts_depend_on_the_groups_alone(lengths: list[int], ranks: int, budget: int, parts: st.DataObject) -> None:
    groups = [group(index, length) for index, length in enumerate(lengths)]
    at_once = Rounds(ranks, budget)
    expected = at_once.add(groups)
    one_by_one, found, left = Rounds(ranks, budget), [], list(groups)
    while left:
        size = parts.draw(st.integers(1, len(left)))
        found += one_by_one.add(left[:size])
        left = left[size:]
    assert found == expected and one_by_one.open == at_once.open
    assert [member for full in [*found, one_by_one.open] for member in full] == groups, "each once, in order"


@given(lengths=LENGTHS, ranks=st.integers(1, 4), budget=st.integers(20, 100))
def test_a_round_is_one_micro_batch_on_each_rank_and_as_full_as_it_goes(
    lengths: list[int], ranks: int, budget: int
) -> None:
    def largest(members: list[TrainGroup]) -> int:
        return max(sum(m.packed_length for m in share) for share in balance_ranks(members, ranks))

    rounds = Rounds(ranks, budget)
    full = [*rounds.add([group(index, length) for index, length in enumerate(lengths)]), rounds.open]
    for members, following in zip(full, [*full[1:], []], strict=True):
        assert len(members) <= 1 or largest(members) <= budget, "a group that is too long has a round of its own"
        if following:
            assert largest([*members, following[0]]) > budget
