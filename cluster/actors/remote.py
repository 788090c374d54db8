"""Waiting for actors, with errors and time-outs that say whom and what for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import ray

from speech.errors import PhaseTimeoutError, UserError


def get(calls: Sequence[ray.ObjectRef], what: str, timeout: float | None) -> list[Any]:
    """`ray.get` whose errors are the actors' own, and whose time-out says what was waited for.

    Raises:
        UserError: as raised in the actor.
        PhaseTimeoutError: naming the call.
    """
    try:
        return ray.get(list(calls), timeout=timeout)
    except ray.exceptions.GetTimeoutError:
        assert timeout is not None
        raise PhaseTimeoutError(what, timeout, f"no answer from {len(calls)} actors") from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def draining_nodes() -> set[str]:
    """Hex ids of the nodes that Ray was told will go: preempted, or about to be removed by an autoscaler.

    Ray has no public call for it; this is the one that Ray Train itself uses
    (`ray.train.v2._internal.execution.preemption`).
    """
    return set(ray._private.state.state.get_draining_nodes())


Item = TypeVar("Item")


def contiguous(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Cut a sequence into `parts` runs of near-equal length (some empty when there are too few items)."""
    bounds = [round(i * len(items) / parts) for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]
