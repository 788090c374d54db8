"""Which prompts are with which engine: each piece of work is done exactly once, whoever dies. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

Item = TypeVar("Item")


def contiguous(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Cut a sequence into `parts` runs of near-equal length (some empty when there are too few items)."""
    bounds = [round(i * len(items) / parts) for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


@dataclass(slots=True)
class Piece:
    """Prompts that go to an engine in one call.

    Attributes:
        number: unique in the book.
        size: of prompts.
        attempts: engines that it was given to so far.
        holder: the engine that has it now, None while it waits.
    """

    number: int
    size: int
    attempts: int = 0
    holder: int | None = None


class WorkBook:
    """The account of all pieces that are not finished.

    Holders are numbers that are never used twice: a restarted engine is another holder, so that what its dead
    predecessor still answers is told apart.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, Piece] = {}
        self._next = 0
        self.reissued = 0

    def add(self, sizes: Iterable[int]) -> list[Piece]:
        """New work, in the order in which it is to be given out."""
        pieces = [Piece(self._next + i, size) for i, size in enumerate(sizes)]
        self._next += len(pieces)
        self._pieces |= {piece.number: piece for piece in pieces}
        return pieces

    def waiting(self) -> list[Piece]:
        """What nobody has, the oldest first: work that was lost keeps its place."""
        return [piece for _, piece in sorted(self._pieces.items()) if piece.holder is None]

    def assign(self, piece: Piece, holder: int) -> None:
        """Raises ValueError when somebody has it already, or when it is finished."""
        if piece.holder is not None or self._pieces.get(piece.number) is not piece:
            raise ValueError(f"piece {piece.number} is not waiting")
        piece.holder = holder
        piece.attempts += 1

    def finish(self, piece: Piece, holder: int) -> bool:
        """Whether this answer counts: not when the piece has gone to another holder meanwhile, or is forgotten."""
        if self._pieces.get(piece.number) is not piece or piece.holder != holder:
            return False
        del self._pieces[piece.number]
        return True

    def lose(self, holder: int) -> list[Piece]:
        """The holder is gone; what it had waits again. Returns that."""
        lost = [piece for piece in self._pieces.values() if piece.holder == holder]
        for piece in lost:
            piece.holder = None
            self.reissued += piece.size
        return lost

    def forget(self, numbers: Iterable[int]) -> None:
        """Nobody wants these pieces any more."""
        for number in numbers:
            self._pieces.pop(number, None)

    def load(self, holder: int) -> int:
        """Prompts that a holder has."""
        return sum(piece.size for piece in self._pieces.values() if piece.holder == holder)

    def __len__(self) -> int:
        """Pieces that are not finished."""
        return len(self._pieces)
