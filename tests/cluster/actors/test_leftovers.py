"""Leftovers of dead engines are freed on other nodes too, and at the end of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from cluster.actors import leftovers
from cluster.actors.leftovers import free_leftovers_on, leave_ray
from speech.runtime.owned_folders import SHARED_MEMORY

pytestmark = pytest.mark.usefixtures("ray_session")
KILLED = """
import os, signal
from rollout.leftovers import HOME, note
from speech.runtime.owned_folders import SHARED_MEMORY, OwnedFolder

home = OwnedFolder(HOME, SHARED_MEMORY).path
segment = SHARED_MEMORY / f"psm_{home.name}"
segment.touch()
note(home, segment)
print(home, segment, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def left() -> list[Path]:
    """What a killed process has left where every process of this node looks."""
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE)
    files = [Path(file) for file in killed.stdout.decode().split()]
    assert len(files) == 2 and all(file.parent == SHARED_MEMORY and file.exists() for file in files)
    return files


def test_a_node_is_asked_and_one_that_is_gone_fails_alone() -> None:
    files = left()
    gone, asked = free_leftovers_on(["e" * 56, ray.get_runtime_context().get_node_id()])
    ray.get(asked, timeout=120)
    assert not any(file.exists() for file in files)
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        ray.get(gone, timeout=60)


def test_a_run_that_ends_leaves_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before Ray's actors are gone, which free what is theirs by their end; what ends them is left out here."""
    files, waited = left(), []

    def wait(processes: list[psutil.Process], timeout: float) -> None:
        assert all(file.exists() for file in files)
        waited.extend(process.name() for process in processes)

    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(leftovers.psutil, "wait_procs", wait)
    leave_ray({"e" * 56, ray.get_runtime_context().get_node_id()})
    assert not any(file.exists() for file in files)
    assert all(name.startswith("ray::") for name in waited)
