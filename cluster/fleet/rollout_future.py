"""An order of groups, from the one who placed it to the engines that fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.fleet.assignments import Shard
from speech.records import BadUtterance, Group


class FleetError(Exception):
    """Engines failed so often that the run cannot go on; the message says which and why."""


class WithdrawnError(Exception):
    """Groups that nobody wanted any more."""


class RolloutFuture:
    """Groups that were ordered. Made by `EngineFleet.submit`.

    Attributes:
        arguments: of the engine's `generate`, for each shard that is not finished.
        received: groups of each finished shard.
        error: why there will be no result.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        arguments: dict[int, tuple[Any, ...]],
        look: Callable[[], None],
        wait: Callable[[RolloutFuture, float | None], None],
        withdraw: Callable[[RolloutFuture], None],
    ) -> None:
        """`look` lets the fleet collect what was answered, `wait` returns when this is complete, `withdraw` stops the
        engines that work on it."""
        self._shards, self._look, self._wait, self._withdraw = list(shards), look, wait, withdraw
        self.arguments = arguments
        self.received: dict[int, list[Group | BadUtterance]] = {}
        self.error: BaseException | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is outstanding, by what has been collected so far."""
        return self.error is not None or len(self.received) == len(self._shards)

    def isolate(self, shard: Shard, parts: Sequence[Shard]) -> None:
        """A shard was cut into these, one for each of its prompts."""
        place = self._shards.index(shard)
        self._shards[place : place + 1] = parts
        prompts, audio, *more = self.arguments.pop(shard.number)
        for part, prompt, item in zip(parts, prompts, audio, strict=True):
            self.arguments[part.number] = ([prompt], [item], *more)

    def receive(self, shard: Shard, groups: list[Group | BadUtterance]) -> None:
        """A shard is finished."""
        self.received[shard.number] = groups
        del self.arguments[shard.number]

    def done(self) -> bool:
        """Whether `result` would answer, or raise, at once."""
        self._look()
        return self.complete

    def cancel(self) -> None:
        """Stop sampling; `result` raises WithdrawnError from now on, unless the groups are there already."""
        self._withdraw(self)

    def result(self, timeout: float | None) -> list[Group | BadUtterance]:
        """Unscored groups, in the order of the prompts; in the place of a group, what is wrong with an utterance that
        no engine could sample.

        Args:
            timeout: seconds for everything, restarts of engines included. None leaves it to the time-outs of each
                attempt and each restart, of which there is a bounded number.

        Raises:
            Exception: what engines say about whatever prompt they get.
            FleetError: engines fail again and again.
            PhaseTimeoutError: saying what the fleet looks like.
        """
        self._wait(self, timeout)
        if self.error is not None:
            raise self.error
        return [group for shard in self._shards for group in self.received[shard.number]]
