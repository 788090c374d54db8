"""The bound of staleness and the order of batches, whatever the order in which samples end."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.training.admission import Admission


@given(
    staleness=st.integers(0, 5),
    rollout_batches=st.integers(0, 12),
    prompts=st.integers(1, 4),
    data=st.data(),
)
def test_what_is_trained_is_what_was_submitted_and_never_too_old(
    staleness: int, rollout_batches: int, prompts: int, data: st.DataObject
) -> None:
    """Samples end in an arbitrary order, short ones first if the engine likes; the learner gets whole batches in order.

    Each sample notes the version at which it was submitted: the oldest that its first token can have.
    """
    admission = Admission(staleness, rollout_batches)
    version = 0
    running: list[tuple[int, int, int]] = []  # (batch, length, version at submission)
    finished: list[tuple[int, int, int]] = []
    submitted: Counter[int] = Counter()
    trained: Counter[int] = Counter()
    order: list[int] = []
    while version < rollout_batches:
        for rollout_batch in admission.admit(version):
            lengths = data.draw(st.lists(st.integers(1, 50), min_size=prompts, max_size=prompts))
            running += [(rollout_batch, length, version) for length in lengths]
            submitted.update(lengths)
        assert len(admission.in_flight) <= staleness + 1
        oldest = [s for s in running + finished if s[0] == admission.in_flight[0]]
        assert oldest, "the learner can never be left without a batch"
        while any(s[0] == admission.in_flight[0] for s in running):
            finished.append(running.pop(data.draw(st.integers(0, len(running) - 1))))
        rollout_batch = admission.in_flight[0]
        admission.train(rollout_batch, version)
        order.append(rollout_batch)
        batch = [s for s in finished if s[0] == rollout_batch]
        finished = [s for s in finished if s[0] != rollout_batch]
        assert len(batch) == prompts
        assert not any(admission.too_old(first, version) for _, _, first in batch)
        assert all(version - first <= staleness for _, _, first in batch)
        trained.update(length for _, length, _ in batch)
        version += 1
    assert order == list(range(rollout_batches))
    assert trained == submitted
    assert not running and not finished and not admission.admit(version)


@given(staleness=st.integers(0, 5), first=st.integers(0, 9), more=st.integers(0, 9))
def test_a_resumed_run_starts_at_the_window_it_would_have_trained_next(staleness: int, first: int, more: int) -> None:
    admission = Admission(staleness, first + more, first)
    assert list(admission.admit(first)) == list(range(first, first + min(staleness + 1, more)))


@given(staleness=st.integers(0, 5), version=st.integers(0, 20), first=st.integers(0, 20))
def test_the_bound_of_a_sample(staleness: int, version: int, first: int) -> None:
    assert Admission(staleness, 1).too_old(first, version) == (version - first > staleness)


def test_nothing_starts_twice_or_ahead_of_the_bound() -> None:
    admission = Admission(1, 10)
    assert [list(admission.admit(0)), list(admission.admit(0))] == [[0, 1], []]
    admission.train(0, 0)
    assert list(admission.admit(0)) == []
    assert list(admission.admit(1)) == [2]
    assert list(admission.in_flight) == [1, 2]


def test_windows_neither_overtake_nor_wait() -> None:
    admission = Admission(2, 10)
    with pytest.raises(RuntimeError, match="batch 0 cannot be trained: in flight are "):
        admission.train(0, 0)
    admission.admit(0)
    with pytest.raises(RuntimeError, match=r"batch 1 cannot be trained: in flight are \[0, 1, 2\]"):
        admission.train(1, 1)
    with pytest.raises(RuntimeError, match="batch 0 belongs to version 0, and the learner is at 1"):
        admission.train(0, 1)
    with pytest.raises(ValueError, match="staleness -1"):
        Admission(-1, 3)
