"""Notices that the head of the Ray cluster is gone, and says what to do before Ray ends the process."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

import ray
from ray.exceptions import RpcError

logger = logging.getLogger(__name__)

EVERY_S = 5.0
ANSWER_S = 10.0
"""A head that is merely busy answers within it."""


class HeadWatch:
    """Asks the head (its GCS) for a sign of life every few seconds, in a thread of its own. A context manager; needs an
    initialised Ray.

    Without the GCS nothing new can be started or found, and after `RAY_gcs_rpc_server_reconnect_timeout_s` (60 s)
    without an answer Ray's own threads end this process with code 1, out of Python's reach. So all that is left to do
    is to leave a message where people look, in the run's log.
    """

    def __enter__(self) -> HeadWatch:
        self._address = ray.get_runtime_context().gcs_address
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        client = ray._private.worker.global_worker.gcs_client  # Ray has no public call for it
        lost = False
        while not self._ended.wait(EVERY_S):
            try:
                client.check_alive([], timeout=ANSWER_S)
            except RpcError as error:
                if not lost:
                    logger.error(
                        "the head of the Ray cluster at %s does not answer (%s); if it stays away, Ray ends this run "
                        "within about a minute. Then start a head and run the same command again: it resumes from its "
                        "last checkpoint",
                        self._address,
                        error,
                    )
                lost = True
            else:
                if lost:
                    logger.warning("the head of the Ray cluster answers again")
                lost = False
