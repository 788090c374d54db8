"""How many actors of a kind a run may have: `min` and `max` beside the number that it starts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge


@dataclass(kw_only=True)
class PoolSize:
    """Base of the sections of a configuration that count actors."""

    count: Annotated[int, Ge(1)] = 1
    """Number of actors at the start."""

    min: Annotated[int, Ge(1)] | None = None
    """Fewest actors to shrink to; null takes `count`: never shrink."""

    max: Annotated[int, Ge(1)] | None = None
    """Most actors to grow to; null takes `count`: never grow."""

    def __post_init__(self) -> None:
        if not self.min_count <= self.count <= self.max_count:
            raise ValueError(f"`count` is {self.count}, which is not between `min` and `max`")

    @property
    def min_count(self) -> int:
        """The lower bound of the number."""
        return self.count if self.min is None else self.min

    @property
    def max_count(self) -> int:
        """The upper bound of the number."""
        return self.count if self.max is None else self.max
