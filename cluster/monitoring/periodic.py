"""Something that is looked at every few seconds while the controller does something else."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 15.0
"""How long a look that is under way at the end is waited for. It may hang where the cluster's head is gone."""


class Periodic(ABC):
    """A thread that looks. A context manager; used once.

    A look that fails is logged, and the thread goes on: what watches a run must not end without a word.
    """

    def __init__(self, name: str, every_s: float) -> None:
        """
        Args:
            name: of the thread.
            every_s: seconds between two looks; 0 never looks.
        """
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """Called by the thread."""

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self) -> None:
        """Start to look; for those whose life is no `with` block."""
        if self._every_s:
            self._thread.start()

    def end(self) -> None:
        """Look no more. May be called when `begin` was not."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT_S)
            if self._thread.is_alive():
                logger.warning("the %s thread still waits for an answer; it ends with the process", self._thread.name)

    def _run(self) -> None:
        failures = 0
        while not self._ended.wait(self._every_s):
            try:
                self.look()
            except Exception:
                failures += 1
                if failures.bit_count() == 1:  # 1, 2, 4, 8, …: what fails for a night is a few lines
                    name = self._thread.name
                    logger.exception("the %s thread failed to look (failure %d); it goes on", name, failures)
