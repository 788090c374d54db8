"""Real faults for real runs: processes are killed or stopped, disks filled, and bits flipped on their way."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from cluster.fleet.replica import EngineReplica, Publication
from cluster.monitoring.phases import Phase, PhaseTimer
from cluster.runs import durable
from speech.runtime.shared_weights import SharedBucket
from tests.chaos.faults import Fault

ACTORS = {"engine": "EngineActor", "encoder": "EncoderActor", "reward": "RewardActor", "rank": "LearnerActor"}
BALLAST = "ballast"
"""The file that fills a disk, for whoever makes room again to remove."""
VICTIM_TIMEOUT_S = 120.0


def processes(kind: str, root: int) -> list[psutil.Process]:
    """The actors of a kind among the descendants of a process, by age."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(f"ray::{ACTORS[kind]}"):
                found.append(process)
        except psutil.Error:  # it ended while we looked
            continue
    return sorted(found, key=lambda process: process.pid)


class Injector:
    """Carries out a plan inside the driver's process, and writes down what it did to `log`.

    What the log has already was done in an earlier execution of the same run, and is not done again.
    """

    def __init__(self, plan: Sequence[Fault], log: Path, root: int, disk: Path) -> None:
        """
        Args:
            root: process whose descendants the actors are.
            disk: mount point of a small file system with the run's folder, for `full_disk`.

        Raises:
            ValueError: a disk is to be filled that is no file system of its own.
        """
        if any(fault.kind == "full_disk" for fault in plan) and not disk.is_mount():
            raise ValueError(f"{disk} is not a mount point: filling it would fill the disk of others")
        done = [Fault(**{f.name: line[f.name] for f in dataclasses.fields(Fault)}) for line in durable.read(log)]
        self._waiting = [fault for fault in plan if fault not in done]
        self._log, self._root, self._disk = log, root, disk
        self._lock = threading.Lock()
        self._under_way: set[Fault] = set()
        self._corrupt: Fault | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Faults strike while this is open."""
        phase, publish = PhaseTimer.phase, EngineReplica.publish
        injector = self

        @contextmanager
        def watched(timer: PhaseTimer, name: str, *args: Any, **kwargs: Any) -> Iterator[Phase]:
            with phase(timer, name, *args, **kwargs) as entered:
                injector._begin(timer._step, name)
                yield entered

        def transported(replica: EngineReplica, publication: Publication, now: float) -> None:
            publish(replica, injector._on_its_way(replica, publication), now)

        PhaseTimer.phase, EngineReplica.publish = watched, transported  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            PhaseTimer.phase, EngineReplica.publish = phase, publish  # type: ignore[method-assign]

    def _begin(self, step: int | None, phase: str) -> None:
        with self._lock:
            due = [f for f in self._waiting if step is not None and f.step <= step and f.phase == phase]
            for fault in due:
                self._waiting.remove(fault)
                self._under_way.add(fault)
                if fault.kind == "corrupt_publication":
                    self._corrupt = fault  # the next bucket on its way
                else:
                    timer = threading.Timer(fault.delay, self._strike, [fault])
                    timer.daemon = True
                    timer.start()

    def _strike(self, fault: Fault) -> None:
        if fault.kind == "kill_driver":
            self._kill_driver(fault)
        elif fault.kind == "full_disk":
            self._fill_disk(fault)
        elif fault.kind == "remove_audio":
            self._remove_audio(fault)
        else:
            number = signal.SIGSTOP if fault.kind.startswith("hang_") else signal.SIGKILL
            self._note(fault, [process.pid for process in self._victims(fault.kind) if _signal(process, number)])

    def _victims(self, fault: str) -> list[psutil.Process]:
        """Waits for them where an earlier fault has not been recovered from: none is there for a moment then."""
        deadline = time.monotonic() + VICTIM_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                victims = self._node() if fault == "kill_raylet" else self._actors(fault)
            except psutil.NoSuchProcess:  # it ended while we looked
                victims = []
            if victims:
                return victims
            time.sleep(0.05)
        return []

    def _actors(self, fault: str) -> list[psutil.Process]:
        action, _, kind = fault.partition("_")
        victims = processes({"engine_core": "engine", "all_engines": "engine"}.get(kind, kind), self._root)
        if kind != "all_engines":
            victims = victims[-1:]
        if action == "hang":  # its engine waits for it; stopping both tests nothing more
            return victims
        below = [(victim, victim.children(recursive=True)) for victim in victims]
        return [process for victim, its in below for process in ([] if kind == "engine_core" else [victim]) + its]

    def _node(self) -> list[psutil.Process]:
        """Every process of the oldest node besides the head."""
        sockets = {
            node["RayletSocketName"]
            for node in ray.nodes()
            if node["Alive"] and "node:__internal_head__" not in node["Resources"]
        }
        found = []
        for process in psutil.Process(self._root).children(recursive=True):
            try:
                if process.name() == "raylet" and any(name in " ".join(process.cmdline()) for name in sockets):
                    found.append(process)
            except psutil.Error:
                continue
        oldest = sorted(found, key=lambda process: process.create_time())[:1]
        return [process for raylet in oldest for process in [raylet, *raylet.children(recursive=True)]]

    def _kill_driver(self, fault: Fault) -> None:
        while self._under_way != {fault}:  # the others belong to this execution
            time.sleep(0.01)
        self._note(fault, [os.getpid()])
        os.kill(os.getpid(), signal.SIGKILL)

    def _remove_audio(self, fault: Fault) -> None:
        files = sorted((self._log.parent / "vanishing").iterdir())
        for file in files:
            file.unlink()
        self._note(fault, [file.name for file in files])

    def _fill_disk(self, fault: Fault) -> None:
        """Fill the disk, and take at once whatever becomes free, as other users of a full disk do. Goes on for ever,
        in this timer's thread."""
        noted = False
        with (self._disk / BALLAST).open("ab", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(2**20))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    if not noted:
                        self._note(fault, [str(self._disk)])
                        noted = True
                    time.sleep(0.002)

    def _on_its_way(self, replica: EngineReplica, publication: Publication) -> Publication:
        fault, self._corrupt = self._corrupt, None
        if fault is None:
            return publication
        bucket = ray.get(publication.buckets[0])
        bucket = bucket.read() if isinstance(bucket, SharedBucket) else bucket
        tensors = {name: tensor.clone() for name, tensor in bucket.tensors.items()}
        name = next(iter(tensors))
        tensors[name].view(torch.int32).view(-1)[0] ^= 1 << 20
        changed = ray.put(dataclasses.replace(bucket, tensors=tensors))
        self._note(fault, [str(replica), name])
        # The same list of results: the fleet must count what happens to it as happening to the real one.
        copy = dataclasses.replace(publication, buckets=(changed, *publication.buckets[1:]))
        return _Disguised(copy, publication)  # type: ignore[return-value]

    def _note(self, fault: Fault, struck: list[Any]) -> None:
        line = json.dumps({**dataclasses.asdict(fault), "struck": struck, "time": time.time()}) + "\n"
        with self._lock, self._log.open("a", encoding="utf-8") as file:
            file.write(line)
            self._under_way.discard(fault)


def _signal(process: psutil.Process, number: int) -> bool:
    """False where it ended by itself a moment ago, as a worker does whose raylet is gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


class _Disguised:
    """A publication with other buckets, whose account is kept on the original."""

    def __init__(self, copy: Publication, original: Publication) -> None:
        self._copy, self._original = copy, original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._copy if name == "buckets" else self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_copy", "_original"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._original, name, value)
