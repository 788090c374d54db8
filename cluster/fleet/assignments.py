"""Which prompts are with which engine: each shard of work is done exactly once, whoever dies. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Shard:
    """Prompts that go to an engine in one call.

    Attributes:
        number: unique in the book.
        size: of prompts.
        attempts: engines that it was given to so far.
        worker: the engine that has it now, None while it waits.
        alone: it is one prompt that may be at fault for what happened to engines; it gets an engine for itself.
    """

    number: int
    size: int
    attempts: int = 0
    worker: int | None = None
    alone: bool = False


class Assignments:
    """The account of all shards that are not finished.

    Workers are numbers that are never used twice: a restarted engine is another worker, so that what its dead
    predecessor still answers is told apart.
    """

    def __init__(self) -> None:
        self._shards: dict[int, Shard] = {}
        self._next = 0
        self.reissued = 0

    def add(self, sizes: Iterable[int]) -> list[Shard]:
        """New work, in the order in which it is to be given out."""
        shards = [Shard(self._next + i, size) for i, size in enumerate(sizes)]
        self._next += len(shards)
        self._shards |= {shard.number: shard for shard in shards}
        return shards

    def isolate(self, shard: Shard) -> list[Shard]:
        """Cut a shard into prompts that are each given out alone; whoever has it, its answer counts no more."""
        del self._shards[shard.number]
        parts = self.add([1] * shard.size)
        for part in parts:
            part.alone = True
        return parts

    def has_one_alone(self, worker: int) -> bool:
        """Whether a worker has a prompt that it is to have for itself."""
        return any(shard.alone for shard in self._shards.values() if shard.worker == worker)

    def waiting(self) -> list[Shard]:
        """What nobody has, the oldest first: work that was lost keeps its place."""
        return [shard for _, shard in sorted(self._shards.items()) if shard.worker is None]

    def assign(self, shard: Shard, worker: int) -> None:
        """Raises ValueError when somebody has it already, or when it is finished."""
        if shard.worker is not None or self._shards.get(shard.number) is not shard:
            raise ValueError(f"shard {shard.number} is not waiting")
        shard.worker = worker
        shard.attempts += 1

    def has(self, shard: Shard, worker: int) -> bool:
        """Whether what a worker says of a shard counts: not when it has gone to another one meanwhile, or is
        forgotten."""
        return self._shards.get(shard.number) is shard and shard.worker == worker

    def finish(self, shard: Shard, worker: int) -> bool:
        """A worker has done all of a shard; whether that counts (`has`)."""
        if not self.has(shard, worker):
            return False
        del self._shards[shard.number]
        return True

    def release(self, worker: int) -> list[Shard]:
        """The worker is gone; what it had waits again. Returns that."""
        lost = [shard for shard in self._shards.values() if shard.worker == worker]
        for shard in lost:
            shard.worker = None
            self.reissued += shard.size
        return lost

    def forget(self, numbers: Iterable[int]) -> None:
        """Nobody wants these shards any more."""
        for number in numbers:
            self._shards.pop(number, None)

    def load(self, worker: int) -> int:
        """Prompts that a worker has."""
        return sum(shard.size for shard in self._shards.values() if shard.worker == worker)

    def __len__(self) -> int:
        """Shards that are not finished."""
        return len(self._shards)
