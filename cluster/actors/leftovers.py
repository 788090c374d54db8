"""What dead engines have left is freed, on this node and on others; actors end with their raylet."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import suppress

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.leftovers import free_leftovers

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""A node starts a process for it."""
GONE_TIMEOUT_S = 10.0
"""Actors whose raylet has ended find that out by themselves."""
LOOK_S = 5.0
"""Between two looks of an actor at its raylet; where Ray notices by itself, it is faster."""


@ray.remote(num_cpus=0, max_retries=0)
def _free_leftovers() -> None:
    free_leftovers()


def free_leftovers_on(nodes: Iterable[str]) -> list[ray.ObjectRef]:
    """Begin to free what dead engines have left on nodes, given by their hex ids; one that is gone fails alone."""
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return [_free_leftovers.options(scheduling_strategy=strategy).remote() for strategy in strategies]


def leave_ray(nodes: Collection[str] = ()) -> None:
    """End Ray on this machine, or our job on a cluster that others started, and free what dead engines have left.

    Args:
        nodes: hex ids of those that had engines. This one is looked at in any case.
    """
    if ray.is_initialized() and nodes:
        try:
            calls = free_leftovers_on(set(nodes) - {ray.get_runtime_context().get_node_id()})
            late = ray.wait(calls, num_returns=len(calls), timeout=TIMEOUT_S)[1] if calls else []
            if late:
                logger.warning("%d nodes did not say that they are tidy; their next engine tidies them", len(late))
        except ray.exceptions.RayError as error:
            logger.warning("nodes are left untidy, their next engines tidy them: %s", error)
    actors = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::"):
                actors.append(process)
    ray.shutdown()
    psutil.wait_procs(actors, timeout=GONE_TIMEOUT_S)
    free_leftovers()


def end_with_raylet() -> None:
    """End this process when its parent has ended, from a thread.

    Ray looks whether there is a process of the raylet's number. There is one until somebody has waited for it: never,
    in a container whose first process waits for no children. Actors of a killed driver then end when they have missed
    their head for a minute, and not at all where the next run's head has taken its address.
    """
    raylet = os.getppid()

    def watch() -> None:
        while os.getppid() == raylet:
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-raylet", daemon=True).start()
