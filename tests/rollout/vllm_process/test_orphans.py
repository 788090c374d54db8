from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from rollout.vllm_process import orphans


def child(folder: str, stubborn: bool) -> None:
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orphans.PATIENCE_S = 0.5
    orphans.end_with_parent()
    orphans.end_with_parent()
    (Path(folder) / "child").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(300)


def parent(folder: str, stubborn: bool) -> None:
    multiprocessing.get_context("spawn").Process(target=child, args=(folder, stubborn)).start()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, stubborn: bool) -> None:
    process = multiprocessing.get_context("spawn").Process(target=parent, args=(str(tmp_path), stubborn))
    process.start()
    file, deadline = tmp_path / "child", time.monotonic() + 60
    while not file.exists() or not file.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    orphan = psutil.Process(int(file.read_text(encoding="utf-8")))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    _, alive = psutil.wait_procs([orphan], timeout=30)
    for left in alive:
        left.kill()
    assert not alive


def test_a_process_of_its_own_is_left_alone() -> None:
    before = [thread.name for thread in threading.enumerate()]
    orphans.end_with_parent()
    assert [thread.name for thread in threading.enumerate()] == before
