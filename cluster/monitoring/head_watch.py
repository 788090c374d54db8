"""Notices that the head of the Ray cluster is gone, and says what to do before Ray ends the process."""

from __future__ import annotations

import logging

import ray
from ray.exceptions import RpcError

from cluster.monitoring.periodic import Periodic

logger = logging.getLogger(__name__)

EVERY_S = 5.0
ANSWER_S = 10.0
"""A head that is merely busy answers within it."""


class HeadWatch(Periodic):
    """Asks the head (its GCS) for a sign of life every few seconds, in a thread of its own. A context manager; needs an
    initialised Ray.

    Without the GCS nothing new can be started or found, and after `RAY_gcs_rpc_server_reconnect_timeout_s` (60 s)
    without an answer Ray's own threads end this process with code 1, out of Python's reach. So all that is left to do
    is to leave a message where people look, in the run's log.
    """

    def __init__(self) -> None:
        super().__init__("head", EVERY_S)
        self._address = ray.get_runtime_context().gcs_address
        self._client = ray._private.worker.global_worker.gcs_client  # Ray has no public call for it
        self._lost = False

    def look(self) -> None:
        try:
            self._client.check_alive([], timeout=ANSWER_S)
        except RpcError as error:
            if not self._lost:
                logger.error(
                    "the head of the Ray cluster at %s does not answer (%s); if it stays away, Ray ends this run "
                    "within about a minute. Then start a head and run the same command again: it resumes from its "
                    "last checkpoint",
                    self._address,
                    error,
                )
            self._lost = True
        else:
            if self._lost:
                logger.warning("the head of the Ray cluster answers again")
            self._lost = False
