"""Real faults for real runs: processes are killed or stopped, and bits flipped on their way."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from cluster.engine_member import Member, Publication
from cluster.phases import Phase, PhaseTimer

ACTORS = {"engine": "EngineActor", "encoder": "EncoderActor", "reward": "RewardActor", "rank": "LearnerActor"}
PHASES = {
    "kill_engine": ("generate", "publish", "learn"),
    "kill_engine_core": ("generate", "publish", "learn"),
    "kill_all_engines": ("generate",),
    "hang_engine": ("generate", "publish"),
    "corrupt_publication": ("publish",),
    "kill_encoder": ("encode", "generate"),
    "kill_reward": ("generate", "reward"),
    "kill_rank": ("learn", "generate", "publish"),
}
"""The kinds of faults, and the phases in which they strike."""


@dataclass(frozen=True)
class Fault:
    """`delay`: seconds after the phase of the step has begun."""

    kind: str
    step: int
    phase: str
    delay: float = 0.0


def random_plan(count: int, steps: int, seed: int) -> list[Fault]:
    """Faults of every kind at random places, one per step at most so that each is recovered from by itself."""
    draw = random.Random(seed)
    chosen = sorted(draw.sample(range(2, steps + 1), min(count, steps - 1)))
    kinds = [draw.choice(sorted(PHASES)) for _ in chosen]
    return [
        Fault(kind, step, draw.choice(PHASES[kind]), round(draw.uniform(0, 0.3), 2))
        for kind, step in zip(kinds, chosen, strict=True)
    ]


def processes(kind: str, root: int | None = None) -> list[psutil.Process]:
    """The actors of a kind among the descendants of a driver, by age."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(f"ray::{ACTORS[kind]}"):
                found.append(process)
        except psutil.Error:  # it ended while we looked
            continue
    return sorted(found, key=lambda process: process.pid)


class Injector:
    """Carries out a plan inside the driver's process, and writes down what it did to `log`."""

    def __init__(self, plan: Sequence[Fault], log: Path) -> None:
        self._waiting = list(plan)
        self._log = log
        self._lock = threading.Lock()
        self._corrupt = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Faults strike while this is open."""
        phase, publish = PhaseTimer.phase, Member.publish
        injector = self

        @contextmanager
        def watched(timer: PhaseTimer, name: str, *args: Any, **kwargs: Any) -> Iterator[Phase]:
            with phase(timer, name, *args, **kwargs) as entered:
                injector._begin(timer._step, name)
                yield entered

        def transported(member: Member, publication: Publication, now: float) -> None:
            publish(member, injector._on_its_way(member, publication), now)

        PhaseTimer.phase, Member.publish = watched, transported  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            PhaseTimer.phase, Member.publish = phase, publish  # type: ignore[method-assign]

    def _begin(self, step: int | None, phase: str) -> None:
        for fault in [f for f in self._waiting if (f.step, f.phase) == (step, phase)]:
            self._waiting.remove(fault)
            if fault.kind == "corrupt_publication":
                self._corrupt = True  # the next bucket on its way
            else:
                threading.Timer(fault.delay, self._strike, [fault]).start()

    def _strike(self, fault: Fault) -> None:
        action, _, kind = fault.kind.partition("_")
        core = kind == "engine_core"
        kind = {"engine_core": "engine", "all_engines": "engine"}.get(kind, kind)
        victims = processes(kind)
        if fault.kind != "kill_all_engines":
            victims = victims[-1:]
        struck = []
        for victim in victims:
            for process in victim.children(recursive=True) if core else [victim, *victim.children(recursive=True)]:
                process.send_signal(signal.SIGSTOP if action == "hang" else signal.SIGKILL)
                struck.append(process.pid)
                if action == "hang":  # its engine waits for it; stopping both tests nothing more
                    break
        self._note(fault, struck)

    def _on_its_way(self, member: Member, publication: Publication) -> Publication:
        if not self._corrupt:
            return publication
        self._corrupt = False
        bucket = ray.get(publication.buckets[0])
        tensors = {name: tensor.clone() for name, tensor in bucket.tensors.items()}
        name = next(iter(tensors))
        tensors[name].view(torch.int32).view(-1)[0] ^= 1 << 20
        changed = ray.put(dataclasses.replace(bucket, tensors=tensors))
        self._note(Fault("corrupt_publication", -1, "publish"), [str(member), name])
        # The same list of results: the fleet must count what happens to it as happening to the real one.
        copy = dataclasses.replace(publication, buckets=(changed, *publication.buckets[1:]))
        return _Disguised(copy, publication)  # type: ignore[return-value]

    def _note(self, fault: Fault, struck: list[Any]) -> None:
        with self._lock, self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**dataclasses.asdict(fault), "struck": struck, "time": time.time()}) + "\n")


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
