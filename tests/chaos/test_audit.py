from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import shared_memory

from rollout.leftovers import VARIABLE
from speech.runtime.owned_folders import SHARED_MEMORY
from tests.chaos.audit import surroundings


def test_what_is_left_behind_is_named_and_nothing_else() -> None:
    outside = os.environ.get("TMPDIR")
    with surroundings() as around:
        folder = around.temporary
        assert os.environ["TMPDIR"] == str(folder) and not around.left_behind()
        (folder / "ray").mkdir()
        (folder / "socket").touch()
        orphan = SHARED_MEMORY / f"psm_audit_{os.getpid()}"
        orphan.touch()
        held = shared_memory.SharedMemory(create=True, size=64)
        try:
            assert sorted(around.left_behind()) == [str(orphan), str(folder / "socket")]
        finally:
            orphan.unlink()
            held.close()
            held.unlink()
    assert os.environ.get("TMPDIR") == outside and not folder.exists()


def test_processes_of_the_runs_engines_are_found_without_their_parents() -> None:
    with surroundings() as around:
        sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(300)"]
        homes = [str(around.temporary / "speechrl-vllm-1"), "/tmp/speechrl-vllm-2"]
        started = [subprocess.Popen(sleep, env=os.environ | {VARIABLE: home}, stdout=subprocess.PIPE) for home in homes]
        try:
            assert all(process.stdout is not None and process.stdout.readline() for process in started)
            assert [process.pid for process in around.engine_processes()] == [started[0].pid]
        finally:
            for process in started:
                process.kill()
                process.communicate()
