"""Waiting for actors, with errors and time-outs that say whom and what for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import ray
from ray._private.state import actors as actor_info

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


def placed(actor: Any) -> bool:
    """Whether an actor has found its place in the cluster and has a process. As `draining_nodes`, Ray has no public
    call for it."""
    return bool(actor_info(actor._actor_id.hex())["Pid"])


def standing(actors: Mapping[str, Any]) -> str:
    """What Ray knows of actors that do not answer, and whether their machine is busy with other things.

    Args:
        actors: handles by name, such as `engine 0`.
    """
    waiting: list[str] = []
    loading: list[str] = []
    running: list[str] = []
    for name, actor in actors.items():
        info = actor_info(actor._actor_id.hex())
        if info["State"] == "PENDING_CREATION":
            (loading if info["Pid"] else waiting).append(name)
        elif info["State"] == "ALIVE":
            running.append(name)
    found = []
    if waiting:
        found.append(f"{', '.join(waiting)} found no place: no node has the CPUs or GPUs free that they ask for")
    if loading:
        found.append(f"{', '.join(loading)} still loaded")
    if running and not (waiting or loading):
        found.append(f"all processes run ({', '.join(running)}) and load their models or wait for one another")
    return "; ".join(filter(None, [*found, overload()]))


def overload() -> str:
    """That this machine is busy with other things; empty where it is not."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    return f"this machine is overloaded: {load:.0f} processes want to run on {cores} cores" if load > 2 * cores else ""


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
