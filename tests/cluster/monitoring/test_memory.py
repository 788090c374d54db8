"""Memory of processes that live, and of those that have ended."""

from __future__ import annotations

import subprocess
import sys

import psutil

from cluster.monitoring.memory import proportional_bytes

HOLD = "held = bytearray(b'x' * 2**26); print('held', flush=True); input()"


def test_the_memory_of_a_process_until_it_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        process = psutil.Process(child.pid)
        assert 2**26 < proportional_bytes(process) <= process.memory_info().rss
        child.kill()
    assert child.returncode and proportional_bytes(process) == 0
