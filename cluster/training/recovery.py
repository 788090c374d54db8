"""How often training may fall back to its last checkpoint. Pure."""

from __future__ import annotations


class RestartBudget:
    """Allows so many restarts in a row; a step that was never reached before begins a new row.

    So a run that loses a rank once a week goes on for ever, and one that dies of the same step again and again ends.
    """

    def __init__(self, limit: int) -> None:
        """Raises ValueError for a negative limit."""
        if limit < 0:
            raise ValueError("the number of restarts cannot be negative")
        self._limit = limit
        self._furthest = 0
        self._used = 0

    def lost(self, step: int, at_most: int | None = None) -> bool:
        """Whether training may restart after a loss in this step (1 for the first).

        Args:
            at_most: of the row's restarts, where the cause is likely to be there again; None for the usual limit.
        """
        if step > self._furthest:
            self._furthest, self._used = step, 0
        self._used += 1
        return self._used <= (self._limit if at_most is None else min(at_most, self._limit))
