"""`log.jsonl`: what the controller logs, one JSON object per line, with run, step and policy version in each."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from cluster.runs.durable import mend, writing

PACKAGES = ("speech", "rollout", "rewards", "learner", "cluster")
"""Logged from INFO upwards; all others from WARNING."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON. `actor` and `phase` come from `extra={"actor": …}` of the call."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run = run
        self.step = 0
        self.version = 0

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "run": self.run,
            "step": self.step,
            "version": self.version,
            "actor": getattr(record, "actor", "controller"),
            "logger": record.name,
            "message": record.getMessage(),
        }
        phase = getattr(record, "phase", None)
        if phase is not None:
            line["phase"] = phase
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class RunLog:
    """Sends Python's logging to the run's `log.jsonl`, and warnings to stderr as well. A context manager.

    The file is only ever added to: a resumed run's log goes on where the earlier one ended.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._formatter = JsonFormatter(run)
        self._file: IO[str] | None = None
        self._handlers: list[logging.Handler] = []
        self._levels: dict[str, int] = {}

    def at(self, step: int, version: int) -> None:
        """What the lines from now on say of the training."""
        self._formatter.step, self._formatter.version = step, version

    def __enter__(self) -> RunLog:
        mend(self._path)
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        to_file = logging.StreamHandler(self._file)
        to_file.setFormatter(self._formatter)
        to_file.addFilter(_ours_or_warning)
        # With a handler at the root, Python no longer prints warnings by itself.
        to_terminal = _Terminal()
        to_terminal.setLevel(logging.WARNING)
        self._handlers = [to_file, to_terminal]
        for handler in self._handlers:
            logging.getLogger().addHandler(handler)
        for name in PACKAGES:
            self._levels[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and kind is not None:
            logging.getLogger(__name__).error("the run ends: %s: %s", kind.__name__, error)
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        if self._file is not None:
            with writing(self._path):
                self._file.close()


class _Terminal(logging.Handler):
    """Prints to what stderr is at that moment: a live display puts something of its own in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def _ours_or_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in PACKAGES
