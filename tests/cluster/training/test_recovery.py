from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.training.recovery import RestartBudget


@given(limit=st.integers(0, 5), steps=st.lists(st.integers(1, 20), max_size=60))
def test_losses_in_a_row_are_those_without_a_new_step(limit: int, steps: list[int]) -> None:
    budget = RestartBudget(limit)
    row, furthest = 0, 0
    for step in steps:
        row = 1 if step > furthest else row + 1
        furthest = max(furthest, step)
        assert budget.lost(step) == (row <= limit)


def test_a_step_that_always_fails_ends_the_run_and_progress_does_not() -> None:
    budget = RestartBudget(2)
    assert [budget.lost(7), budget.lost(6), budget.lost(7)] == [True, True, False]
    budget = RestartBudget(1)
    assert all(budget.lost(step) for step in range(1, 500, 3))
    with pytest.raises(ValueError):
        RestartBudget(-1)


def test_a_cause_that_stays_is_forgiven_less_often() -> None:
    budget = RestartBudget(3)
    assert not budget.lost(1, at_most=0)  # nothing was ever trained
    assert [budget.lost(5, at_most=1), budget.lost(4, at_most=1)] == [True, False]
    assert not RestartBudget(0).lost(1, at_most=1)
