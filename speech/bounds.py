"""How many actors of a kind a run may have: `min` and `max` beside the number that it starts with."""

from __future__ import annotations

from typing import ClassVar


class Bounded:
    """Base of the sections of a configuration that count actors.

    It declares no fields: each section documents its own keys, and calls the number at the start what it likes.
    """

    min: int | None
    max: int | None
    count_key: ClassVar[str] = "count"
    """The field that holds the number at the start."""

    def __post_init__(self) -> None:
        if not self.fewest <= self._count <= self.most:
            raise ValueError(f"`{self.count_key}` is {self._count}, which is not between `min` and `max`")

    @property
    def fewest(self) -> int:
        """The lower bound of the number."""
        return self._count if self.min is None else self.min

    @property
    def most(self) -> int:
        """The upper bound of the number."""
        return self._count if self.max is None else self.max

    @property
    def _count(self) -> int:
        count: int = getattr(self, self.count_key)
        return count
