from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.work import Piece, WorkBook, contiguous


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_every_piece_counts_exactly_once_whoever_dies(sizes: list[int], data: st.DataObject) -> None:
    book = WorkBook()
    pieces = book.add(sizes)
    done: list[int] = []
    answers: list[tuple[Piece, int]] = []  # calls that may still answer, zombies included
    for _ in range(data.draw(st.integers(0, 60))):
        action = data.draw(st.sampled_from(["assign", "answer", "die"]))
        if action == "assign" and book.waiting():
            piece = book.waiting()[0]
            holder = data.draw(st.integers(0, 3)) + 10 * piece.attempts  # a holder's number is never used again
            book.assign(piece, holder)
            answers.append((piece, holder))
        elif action == "answer" and answers:
            piece, holder = answers.pop(data.draw(st.integers(0, len(answers) - 1)))
            if book.finish(piece, holder):
                done.append(piece.number)
        elif action == "die" and answers:
            book.lose(data.draw(st.sampled_from(answers))[1])
    for piece in list(book.waiting()):
        book.assign(piece, 1000)
    for piece in pieces:
        if piece.holder is not None and book.finish(piece, piece.holder):
            done.append(piece.number)
    assert sorted(done) == [piece.number for piece in pieces]
    assert len(book) == 0
    for piece, holder in answers:
        assert not book.finish(piece, holder), "a zombie's answer is discarded"


def test_lost_work_keeps_its_place_and_is_counted() -> None:
    book = WorkBook()
    first, second, third = book.add([3, 2, 4])
    book.assign(first, 1)
    book.assign(second, 2)
    assert (book.load(1), book.load(2), book.load(3)) == (3, 2, 0)
    assert book.lose(1) == [first] and book.reissued == 3
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
