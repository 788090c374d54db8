"""vLLM's processes give their core away while they wait, on CPUs.

An executor on CPUs always runs its worker as a process of its own, and the two talk through a queue in shared memory.
Its reader polls without a pause for a second after each message before it sleeps: on a GPU's host that saves some
microseconds, on two cores it takes one of them from the learner (docs/decisions/024).
"""

from __future__ import annotations

import time
from typing import Any

from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform

RECENT_S = 1.0
"""So long after a message vLLM's reader would poll, and does not rely on being notified."""
LOOK_MS = 1
"""How often ours looks then. It cannot sleep until notified: of two notifications in quick succession the second may be
dropped although the first has been taken."""


class PatientCondition(shm_broadcast.SpinCondition):
    """Sleeps until the writer's notification comes or, shortly after a message, it is time to look again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "busy_loop_s": 0})

    def wait(self, timeout_ms: int | None = None) -> None:
        """As in vLLM: may return without there being a message, the caller looks."""
        if time.monotonic() <= self.last_read + RECENT_S:
            timeout_ms = LOOK_MS if timeout_ms is None else min(LOOK_MS, timeout_ms)
        super().wait(timeout_ms)


def wait_asleep() -> None:
    """Have the queues of this process made with `PatientCondition`. On other platforms nothing changes."""
    if current_platform.is_cpu():
        shm_broadcast.SpinCondition = PatientCondition
