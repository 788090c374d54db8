"""Spans are kept where work happens, and cut where they are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.runtime.spans import KEPT, Span, SpanRecorder, covered


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_open_span_is_cut_and_continues() -> None:
    clock = Clock()
    recorder = SpanRecorder(clock)
    with recorder.span("generate"):
        clock.now = 102.0
        with recorder.span("update"):
            clock.now = 103.0
        assert recorder.take() == [Span("generate", 100.0, 103.0), Span("update", 102.0, 103.0)]
        clock.now = 104.0
        assert recorder.take() == [Span("generate", 103.0, 104.0)]
        clock.now = 106.0
    clock.now = 107.0
    assert recorder.take() == [Span("generate", 104.0, 106.0)]
    assert recorder.take() == []


def test_work_that_fails_was_work() -> None:
    clock = Clock()
    recorder = SpanRecorder(clock)
    with pytest.raises(ZeroDivisionError), recorder.span("learn"):
        clock.now = 101.0
        raise ZeroDivisionError
    assert recorder.take() == [Span("learn", 100.0, 101.0)]


def test_where_nobody_asks_the_oldest_go() -> None:
    recorder = SpanRecorder()
    for i in range(KEPT + 5):
        with recorder.span(str(i)):
            pass
    assert len(recorder.take()) == KEPT


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=8), st.integers(0, 20), st.integers(0, 20))
def test_overlapping_work_is_covered_once(starts: list[tuple[int, int]], begin: int, length: int) -> None:
    spans = [Span("x", float(start), float(start + seconds)) for start, seconds in starts]
    busy = {second for start, seconds in starts for second in range(start, start + seconds)}
    assert covered(spans, begin, begin + length) == len(busy & set(range(begin, begin + length)))
