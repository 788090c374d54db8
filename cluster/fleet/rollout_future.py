"""An order of groups, from the one who placed it to the engines that fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
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
        sampled: groups by the place of their prompt in the order, as far as they are there. A shard that goes to
            another engine keeps what it has: the same comes again.
        error: why there will be no result.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        arguments: dict[int, tuple[Any, ...]],
        look: Callable[[], None],
        wait: Callable[[RolloutFuture, float | None, Callable[[], bool]], None],
        withdraw: Callable[[RolloutFuture], None],
    ) -> None:
        """`look` lets the fleet collect what was answered, `wait` returns when this is complete or what it is given
        answers True, `withdraw` stops the engines that work on it."""
        self._look, self._wait, self._withdraw = look, wait, withdraw
        self.arguments = arguments
        ends = list(accumulate((shard.size for shard in shards), initial=0))
        self._first = {shard.number: first for shard, first in zip(shards, ends, strict=False)}
        self._size = ends[-1]
        self.sampled: dict[int, Group | BadUtterance] = {}
        self.error: BaseException | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is outstanding, by what has been collected so far."""
        return self.error is not None or not self._first

    def isolate(self, shard: Shard, parts: Sequence[Shard]) -> None:
        """A shard was cut into these, one for each of its prompts."""
        first = self._first.pop(shard.number)
        self._first |= {part.number: first + i for i, part in enumerate(parts)}
        prompts, audio, *more = self.arguments.pop(shard.number)
        for part, prompt, item in zip(parts, prompts, audio, strict=True):
            self.arguments[part.number] = ([prompt], [item], *more)

    def receive(self, shard: Shard, place: int, group: Group | BadUtterance) -> None:
        """What became of a prompt of a shard."""
        self.sampled.setdefault(self._first[shard.number] + place, group)

    def finish(self, shard: Shard) -> None:
        """A shard is finished.

        Raises:
            RuntimeError: something of it was not received.
        """
        first = self._first.pop(shard.number)
        missing = [place for place in range(first, first + shard.size) if place not in self.sampled]
        if missing:
            raise RuntimeError(f"an engine ended its work without groups for {len(missing)} of {shard.size} prompts")
        del self.arguments[shard.number]

    def done(self) -> bool:
        """Whether `result` would answer, or raise, at once."""
        self._look()
        return self.complete

    def cancel(self) -> None:
        """Stop sampling; `result` raises WithdrawnError from now on, unless the groups are there already."""
        self._withdraw(self)

    def first_of(self, parts: Sequence[range]) -> int:
        """Wait until all groups of one of several parts of the order are there; which part. Raises as `result`."""

        def whole() -> int | None:
            return next((i for i, part in enumerate(parts) if all(place in self.sampled for place in part)), None)

        self._wait(self, None, lambda: whole() is not None)
        found = whole()
        if self.error is not None or found is None:
            raise self.error or RuntimeError("no such part was ordered")
        return found

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
        self._wait(self, timeout, lambda: False)
        if self.error is not None:
            raise self.error
        return [self.sampled[place] for place in range(self._size)]
