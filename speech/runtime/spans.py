"""What an actor was doing when: spans of wall-clock time, kept where they arise until the controller asks for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

KEPT = 10_000
"""Finished spans that a recorder holds; where nobody asks for them, the oldest go."""


@dataclass(frozen=True, slots=True)
class Span:
    """Work between two moments.

    Attributes:
        name: of the work, such as `generate`.
        start, end: seconds since the epoch, by the clock of the machine where it happened.
    """

    name: str
    start: float
    end: float


class SpanRecorder:
    """Collects the spans of one process; several may be open at the same time, in one thread or several."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._finished: deque[Span] = deque(maxlen=KEPT)
        self._open: dict[int, tuple[str, float]] = {}
        self._count = 0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record what happens inside, however it ends."""
        with self._lock:
            self._count += 1
            key = self._count
            self._open[key] = (name, self._clock())
        try:
            yield
        finally:
            with self._lock:
                name, start = self._open.pop(key)
                self._finished.append(Span(name, start, self._clock()))

    def take(self) -> list[Span]:
        """Spans since the last call, oldest start first. One that is still open is cut here: what follows belongs to
        the next call."""
        with self._lock:
            now = self._clock()
            cut = [Span(name, start, now) for name, start in self._open.values()]
            self._open = {key: (name, now) for key, (name, _) in self._open.items()}
            spans = sorted([*self._finished, *cut], key=lambda span: (span.start, span.end))
            self._finished.clear()
            return spans


def covered(spans: list[Span], start: float, end: float) -> float:
    """Seconds of [start, end] in which at least one span was at work."""
    total, reached = 0.0, start
    for span in sorted(spans, key=lambda s: s.start):
        begin, finish = max(span.start, reached), min(span.end, end)
        if finish > begin:
            total += finish - begin
            reached = finish
    return total
