"""Ctrl-C and SIGTERM: the step ends first."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cluster.monitoring.progress import TrainingDisplay

REPEATED_SIGNAL_S = 1.0
"""Within this time a second Ctrl-C is an echo of the first."""


@contextmanager
def interruption(display: TrainingDisplay) -> Iterator[list[bool]]:
    """Ctrl-C (or SIGTERM) lets the running step end, so that it can be saved; a second Ctrl-C stops at once.

    One request may arrive several times: Ray signals each process of a job, and a wrapper (`timeout`, `srun`, an init
    process) passes its copy on. So a repeated SIGTERM means nothing new, nor does a Ctrl-C within a second.

    Yields:
        A list that is non-empty once the user has asked to stop.
    """
    asked: list[bool] = []
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if asked:
            if number == signal.SIGINT and time.monotonic() - first > REPEATED_SIGNAL_S:
                raise KeyboardInterrupt
            return
        first = time.monotonic()
        asked.append(True)
        display.message("stopping after this step; a checkpoint will be saved (Ctrl-C again: stop at once)")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
