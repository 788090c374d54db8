"""When not to ask a server that does not answer. Pure: no I/O, the clock is given."""

from __future__ import annotations

from collections.abc import Callable


class CircuitBreaker:
    """Refuses calls for a while after failures in a row, so that a dead server costs no time-out for each group.

    After the pause one call is let through: its success closes the circuit, its failure begins another pause.

    Args:
        failures: in a row after which it refuses.
        pause_s: seconds for which it does.
        clock: monotonic seconds.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._limit, self._pause_s, self._clock = failures, pause_s, clock
        self._failures = 0
        self._since = 0.0
        self._last = ""

    def refusal(self) -> str | None:
        """Why no call may be made now; None when one may."""
        left = self._since + self._pause_s - self._clock()
        if self._failures < self._limit or left <= 0:
            return None
        return f"not asked: {self._failures} failures in a row, the last: {self._last}; again in {left:.0f} s"

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, reason: str) -> None:
        self._failures += 1
        self._since, self._last = self._clock(), reason
