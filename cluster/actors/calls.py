"""Work on its way through a pool of actors: what an actor is asked for, and what is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ray import ObjectRef

from cluster.actors.roster import PoolActor

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Request(Generic[Result]):
    """Work that an actor was asked for.

    Attributes:
        answer: reference to its answer.
        results: makes one result per item of the answer, in order.
    """

    answer: ObjectRef
    results: Callable[[Any], Sequence[Result]]


Ask = Callable[[Any, list[Item]], Request[Result]]
"""Asks an actor, whose handle is given, to work on items."""


@dataclass(frozen=True, slots=True)
class Job:
    """Items for one call, by their places in the run, and how many attempts at them have failed."""

    places: Sequence[int]
    failed: int = 0


@dataclass(slots=True, eq=False)
class Run(Generic[Item, Result]):
    """Items on their way through a pool: those not yet asked for, those under way, and the results by place."""

    items: Sequence[Item]
    ask: Ask[Item, Result]
    timeout: float
    jobs: deque[Job] = field(default_factory=deque)
    calls: list[Call] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Call:
    """A job that an actor has.

    Attributes:
        run: that it belongs to; None once that has ended early, so that the answer is for nobody.
        prepared: reference to the answer of what the actor had to do before, or None.
        timeout: in seconds; `deadline` is when it ends, on the monotonic clock.
        since: seconds since the epoch; spans tell the time from here.
    """

    run: Run[Any, Any] | None
    actor: PoolActor
    job: Job
    request: Request[Any]
    prepared: ObjectRef | None
    timeout: float
    deadline: float
    since: float
