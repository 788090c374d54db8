"""Whether a cluster that was joined has the GPUs that a run asks for, or may still get them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from speech.errors import UserError

logger = logging.getLogger(__name__)

STATUS_KEY = "__autoscaling_status"
"""Where version 1 of the autoscaler says what it does. Without a provider of nodes it mirrors those that there are,
each as a type of its own."""
_MIRRORED = re.compile(r"node_[0-9a-f]{56}")
STATUS_S = 5.0
"""A head that has just started has not written it yet."""


def check_room(wanted: Mapping[str, float], timeout: float) -> None:
    """Say what the run will wait for.

    Args:
        wanted: GPUs by the key that asks for them (`cluster.preflight.gpus_wanted`).
        timeout: `engines.startup_timeout_s`.

    Raises:
        UserError: they are not there, and nothing brings them.
    """
    has, total = ray.cluster_resources().get("GPU", 0.0), sum(wanted.values())
    if total <= has:
        return
    asks = ", ".join(f"{key} {gpus:g}" for key, gpus in wanted.items())
    lack = f"the run asks for {total:g} GPUs ({asks}); the cluster has {has:g}"
    if not may_grow():
        raise UserError(f"{lack}, and no autoscaler that would add nodes")
    logger.warning("%s: it waits for the autoscaler, up to engines.startup_timeout_s=%g s", lack, timeout)


def may_grow() -> bool:
    """Whether the cluster that this process joined has an autoscaler with nodes to add."""
    if is_autoscaler_v2(fetch_from_server=True):  # under KubeRay; the head of `ray start` alone has version 1
        return True
    deadline = time.monotonic() + STATUS_S
    while (status := _internal_kv_get(STATUS_KEY)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return status is not None and adds_nodes(json.loads(status))


def adds_nodes(status: Mapping[str, Any]) -> bool:
    """Whether version 1 of the autoscaler knows types of nodes, by what it says of itself."""
    report = status.get("autoscaler_report") or {}
    names = {*(report.get("active_nodes") or {}), *(report.get("pending_launches") or {})}
    return not all(_MIRRORED.fullmatch(name) for name in names)
