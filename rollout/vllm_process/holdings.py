"""What vLLM's processes create by name is noted in their engine's home at that moment."""

from __future__ import annotations

import os
from multiprocessing import resource_tracker
from pathlib import Path

from rollout.leftovers import VARIABLE, note
from speech.runtime.owned_folders import SHARED_MEMORY

PREFIXES = {"shared_memory": "", "semaphore": "sem."}
"""What the file in `/dev/shm` has before its name, by what Python's resource tracker calls the kind."""


def note_holdings() -> None:
    """Note every name that Python wants to be removed at this process's end, in processes that belong to an engine.

    Python's own tracker is a process too, and is killed where all of an engine's are.
    """
    register = resource_tracker.register
    if getattr(register, "notes", False):
        return

    def noting(name: str, kind: str) -> None:
        register(name, kind)
        home = os.environ.get(VARIABLE)
        if home is not None and kind in PREFIXES:
            note(Path(home), SHARED_MEMORY / (PREFIXES[kind] + name.lstrip("/")))

    noting.notes = True  # type: ignore[attr-defined]
    resource_tracker.register = noting  # type: ignore[assignment]
