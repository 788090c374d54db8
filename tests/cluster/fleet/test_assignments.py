from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.actors.remote import contiguous
from cluster.fleet.assignments import Assignments, Shard


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_every_piece_counts_exactly_once_whoever_dies(sizes: list[int], data: st.DataObject) -> None:
    book = Assignments()
    shards = book.add(sizes)
    done: list[int] = []
    answers: list[tuple[Shard, int]] = []  # calls that may still answer, zombies included
    for _ in range(data.draw(st.integers(0, 60))):
        action = data.draw(st.sampled_from(["assign", "answer", "die"]))
        if action == "assign" and book.waiting():
            shard = book.waiting()[0]
            worker = data.draw(st.integers(0, 3)) + 10 * shard.attempts  # a worker's number is never used again
            book.assign(shard, worker)
            answers.append((shard, worker))
        elif action == "answer" and answers:
            shard, worker = answers.pop(data.draw(st.integers(0, len(answers) - 1)))
            if book.finish(shard, worker):
                done.append(shard.number)
        elif action == "die" and answers:
            book.release(data.draw(st.sampled_from(answers))[1])
    for shard in list(book.waiting()):
        book.assign(shard, 1000)
    for shard in shards:
        if shard.worker is not None and book.finish(shard, shard.worker):
            done.append(shard.number)
    assert sorted(done) == [shard.number for shard in shards]
    assert len(book) == 0
    for shard, worker in answers:
        assert not book.finish(shard, worker), "a zombie's answer is discarded"


def test_lost_work_keeps_its_place_and_is_counted() -> None:
    book = Assignments()
    first, second, third = book.add([3, 2, 4])
    book.assign(first, 1)
    book.assign(second, 2)
    assert (book.load(1), book.load(2), book.load(3)) == (3, 2, 0)
    assert book.release(1) == [first] and book.reissued == 3
    assert book.waiting() == [first, third]
    with pytest.raises(ValueError):
        book.assign(second, 3)
    book.forget([third.number])
    assert book.waiting() == [first]
    with pytest.raises(ValueError):
        book.assign(third, 3)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_shares_are_contiguous_and_near_equal(items: list[int], parts: int) -> None:
    shares = contiguous(items, parts)
    assert [item for share in shares for item in share] == items and len(shares) == parts
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_shard_that_is_cut_counts_only_by_its_prompts() -> None:
    book = Assignments()
    whole, other = book.add([3, 2])
    book.assign(whole, 1)
    parts = book.isolate(whole)
    assert [part.size for part in parts] == [1, 1, 1] and all(part.alone for part in parts)
    assert not book.finish(whole, 1), "its engine's answer is for nobody"
    assert book.waiting() == [other, *parts]
    book.assign(parts[0], 2)
    assert book.has_one_alone(2) and not book.has_one_alone(1)
    assert book.finish(parts[0], 2) and not book.has_one_alone(2)
