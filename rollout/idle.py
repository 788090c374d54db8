"""vLLM's processes give their core away while they wait, on CPUs.

An executor on CPUs always runs its worker as a process of its own, and the two talk through a queue in shared memory.
Its reader polls for a second after each message before it sleeps: on a GPU's host that saves some microseconds, on two
cores it takes one of them from the learner (docs/decisions/024).
"""

from __future__ import annotations

from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform


class PatientCondition(shm_broadcast.SpinCondition):
    """Waits for the writer's notification asleep, once its first second is over.

    Until then it polls as vLLM does: its subscription to the notifications may not stand yet, and one that is sent
    before would be missed.
    """

    def record_read(self) -> None:
        """Do not take a message for a reason to go on polling."""


def wait_asleep() -> None:
    """Have the queues of this process made with `PatientCondition`. On other platforms nothing changes."""
    if current_platform.is_cpu():
        shm_broadcast.SpinCondition = PatientCondition
