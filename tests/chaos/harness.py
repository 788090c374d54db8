"""Running the tiny training under a plan of faults, as its user would: again, where a fault has ended the command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import psutil
from ray.cluster_utils import Cluster

from tests.chaos.audit import Outcome, Surroundings, audit, surroundings
from tests.chaos.faults import RERUN, Fault
from tests.chaos.injector import ACTORS, BALLAST, processes
from tests.end_to_end.ray_head import of_session
from tests.end_to_end.runs import ROOT, records, write_config
from tests.small_disk import small_disk

SETTINGS: dict[str, Any] = {
    # Seconds rather than minutes, but enough for two busy cores.
    "engines__heartbeat_s": 1.0,
    "engines__heartbeat_timeout_s": 30.0,
    "engines__startup_timeout_s": 240.0,
    "engines__generate_timeout_s": 120.0,
    "publish": {"timeout_s": 60.0},
    "evaluation": {"before": False, "after": False},
}
REWARD_TIMEOUT_S = 20.0
"""Scoring takes milliseconds here."""
DISK_MB = 64
"""A run's folder has about 5."""
STORE_BYTES = 150 * 2**20
ORPHAN_TIMEOUT_S = 60.0
"""Processes whose driver was killed find that out by themselves."""


def disturbed(
    folder: Path,
    model: Path,
    plan: Sequence[Fault],
    timeout: float = 900,
    nodes: int = 1,
    prepare: Callable[[Path], None] = lambda train: None,
    **settings: Any,
) -> Outcome:
    """Run the tiny training under a plan of faults until it is complete, and audit it.

    Args:
        timeout: of each execution of the command, in seconds.
        nodes: 2 runs it on a cluster of two raylets and a head without room; a node that is lost is replaced.
        prepare: changes the manifest to train on.
        settings: of the configuration, in the place of `SETTINGS`.

    Raises:
        CannotMountError: the plan fills a disk, and this user cannot mount a small one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    section = SETTINGS | settings
    rewards = {"rewards__timeout_s": REWARD_TIMEOUT_S}
    log = folder / "faults.jsonl"
    log.touch()
    with ExitStack() as stack:
        around = stack.enter_context(surroundings())
        look: Callable[[], None] = _nothing
        if nodes > 1:
            cluster = stack.enter_context(_Nodes(nodes, log))
            section["ray"], look = {"address": cluster.address}, cluster.replace
        if any(fault.kind == "full_disk" for fault in plan):
            stack.enter_context(small_disk(folder / "runs", DISK_MB))
        config = write_config(folder, model, **section | rewards)
        prepare(folder / "train.jsonl")
        (folder / "plan.json").write_text(json.dumps([dataclasses.asdict(fault) for fault in plan]), encoding="utf-8")
        command = [sys.executable, "-m", "tests.chaos.driver", str(config), str(folder / "plan.json"), str(log)]
        with (folder / "output.txt").open("a", encoding="utf-8") as output:
            executions, problems = _to_the_end(command, folder, log, output, timeout, look, around)
    written = json.loads(config.read_text(encoding="utf-8"))
    text = (folder / "output.txt").read_text(encoding="utf-8")
    outcome = Outcome(folder / "runs" / "tiny", text, records(log), executions, problems)
    manifest = Path(written["data"]["train"])
    outcome.problems += audit(outcome, manifest, written["steps"], written.get("staleness", 0))
    missed = len(plan) - len(outcome.struck)
    if missed or not all(entry["struck"] for entry in outcome.struck):
        outcome.problems.append("a fault hit nothing")
    return outcome


def _nothing() -> None:
    pass


def _to_the_end(
    command: Sequence[str],
    folder: Path,
    log: Path,
    output: IO[str],
    timeout: float,
    look: Callable[[], None],
    around: Surroundings,
) -> tuple[int, list[str]]:
    """Run a command again and again while it is a fault of the log that has ended it.

    Returns:
        How often it was run, and what was wrong.
    """
    executions, sessions, problems = 0, [], []
    while True:
        done = len(records(log))
        code, session = _execute(command, output, timeout, look)
        sessions.append(session)
        executions += 1
        new = {entry["kind"] for entry in records(log)[done:]}
        (folder / "runs" / BALLAST).unlink(missing_ok=True)  # somebody makes room
        if code is None:
            problems.append(f"execution {executions} did not end in time")
            break
        expected = [RERUN[kind] for kind in RERUN if kind in new]
        if code == 0 and not expected:
            break
        if code not in expected:
            problems.append(
                f"execution {executions} ended with code {code} after {', '.join(sorted(new)) or 'nothing'}"
            )
            break
    if processes_left := _left(sessions, around):
        problems.append(f"processes outlive the run: {', '.join(processes_left)}")
    if left := around.left_behind():
        problems.append(f"the run leaves behind {', '.join(left)}")
    return executions, problems


def _execute(
    command: Sequence[str], output: IO[str], timeout: float, look: Callable[[], None]
) -> tuple[int | None, int]:
    """Run a command once; its exit code (None when it had to be killed) and the id of its session."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    try:
        while process.poll() is None and time.monotonic() < deadline:
            look()
            time.sleep(0.1)
        return process.poll(), process.pid
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _left(sessions: Sequence[int], around: Surroundings) -> list[str]:
    """Processes of these sessions and of the run's engines, and actors among the descendants of this one, that do not
    end by themselves and so are ended here."""

    def look() -> list[psutil.Process]:
        return [
            *(process for session in sessions for process in of_session(session)),
            *(process for kind in ACTORS for process in processes(kind, os.getpid())),
            *around.engine_processes(),
        ]

    deadline = time.monotonic() + ORPHAN_TIMEOUT_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    names = []
    for process in found:
        with suppress(psutil.NoSuchProcess):
            names.append(" ".join(process.cmdline())[:80])
            process.kill()
    return names


class _Nodes:
    """A cluster of raylets on this machine, with a head that has no room for actors. A context manager."""

    def __init__(self, nodes: int, log: Path) -> None:
        """`log`: where the injector writes which nodes it has killed."""
        self._count, self._log, self._replaced = nodes, log, 0

    def __enter__(self) -> _Nodes:
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        for _ in range(self._count):
            self._add()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def replace(self) -> None:
        """Add a node for each one that was killed."""
        killed = sum(entry["kind"] == "kill_raylet" for entry in records(self._log))
        while self._replaced < killed:
            self._replaced += 1
            self._add()

    def _add(self) -> None:
        # Together they hold every actor of the run; alone none does.
        self._cluster.add_node(num_cpus=3, object_store_memory=STORE_BYTES)
