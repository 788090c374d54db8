"""Joining a Ray cluster, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from cluster.config import RunConfig
from cluster.preflight import surrounding_cluster
from speech.errors import UserError


def start_ray(config: RunConfig, listener_cpus: int = 0) -> None:
    """Join the configured cluster, or start Ray here with room for every actor of the run.

    Args:
        listener_cpus: of the actor that listens to evaluations, where there is one.

    Raises:
        UserError: no cluster answers at the address.
    """
    if ray.is_initialized():
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = config.ray.address or surrounding_cluster()
    if address is None:
        # On one machine the actors take turns, so each gets its place however few cores there are; thread counts,
        # not Ray's bookkeeping, say how much of the machine an actor uses in its turn.
        engines, encoder, learner = config.engines, config.encoder, config.learner
        needed = (
            engines.max_count * engines.threads + encoder.max_count * encoder.threads + learner.ranks + listener_cpus
        )
        cpus = config.ray.num_cpus or max(os.cpu_count() or 1, needed + config.rewards.max_count)
        store = config.ray.object_store_mb
        settings |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": None if store is None else store * 2**20,
        }
    try:
        ray.init(address=address or "local", **settings)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from error
