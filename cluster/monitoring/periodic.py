"""Something that is looked at every few seconds while the controller does something else."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Periodic(ABC):
    """A thread that looks. A context manager; used once."""

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
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._every_s:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self.look()
