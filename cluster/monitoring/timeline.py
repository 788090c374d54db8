"""The timeline of a run: what every actor did when, for Perfetto, and how much of each step it was idle."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.runs.durable import mend, writing
from speech.runtime.spans import Span, covered

GATHER_TIMEOUT_S = 10.0
"""Longest wait for the actors' spans; those of a busy or dead actor come later, or never."""


def gather(actors: Mapping[str, Any], timeout: float = GATHER_TIMEOUT_S) -> dict[str, list[Span]]:
    """Ask actors for their spans, all at once.

    Args:
        actors: handles by a name such as `engine 0`.

    Returns:
        Spans of those that answered. A dead actor is left out; whoever works with it reports it.
    """
    calls = {name: actor.spans.remote() for name, actor in actors.items()}
    ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout) if calls else ([], [])
    answered = set(ready)
    found = {}
    for name, call in calls.items():
        if call in answered:
            try:
                found[name] = ray.get(call)
            except ray.exceptions.RayActorError:
                continue
    return found


def idle_fractions(spans: Mapping[str, Sequence[Span]], start: float, end: float) -> dict[str, float]:
    """`time/idle_fraction/<component>`: the share of [start, end] in which its actors did nothing, on average.

    Args:
        spans: by actor; the component is the actor's name up to the first space (`engine` of `engine 0`).
        start, end: seconds since the epoch.
    """
    shares: dict[str, list[float]] = {}
    for actor, its in spans.items():
        idle = 1 - covered(list(its), start, end) / (end - start) if end > start else 0.0
        shares.setdefault(actor.split(" ")[0], []).append(min(1.0, max(0.0, idle)))
    return {f"time/idle_fraction/{component}": statistics.fmean(values) for component, values in sorted(shares.items())}


class Timeline:
    """`timeline.json`, a Chrome trace that grows step by step: open it at https://ui.perfetto.dev.

    Each actor is a process of the trace. The file is an array that is never closed, which the format allows, so that it
    can be read while the run goes on; a resumed run adds to it. Clocks of different machines are taken as they are.
    """

    def __init__(self, path: Path, first: int | None = None) -> None:
        """
        Args:
            first: the trace's number of the first actor; None takes one from the clock, so that the actors of a resumed
                run are others than those before, even where their names are the same.

        Raises:
            UserError: the disk refuses.
        """
        self._path = path
        mend(path)
        self._first = int(time.time()) % 1_000_000 * 1000 if first is None else first
        self._processes: dict[str, int] = {}

    def append(self, step: int, spans: Mapping[str, Sequence[Span]]) -> None:
        """Add what actors did since the last call.

        Raises:
            UserError: the disk refuses.
        """
        events: list[dict[str, Any]] = []
        for actor, its in spans.items():
            if actor not in self._processes:
                self._processes[actor] = self._first + len(self._processes)
                name = {"name": "process_name", "ph": "M", "pid": self._processes[actor], "tid": 0}
                events.append(name | {"args": {"name": actor}})
            for lane, span in lanes(its):
                events.append(
                    {
                        "name": span.name,
                        "ph": "X",
                        "ts": round(span.start * 1e6),
                        "dur": round((span.end - span.start) * 1e6),
                        "pid": self._processes[actor],
                        "tid": lane,
                        "args": {"step": step},
                    }
                )
        text = "".join(json.dumps(event) + ",\n" for event in events)
        with writing(self._path):
            new = not self._path.exists() or not self._path.stat().st_size
            with self._path.open("a", encoding="utf-8") as file:
                file.write("[\n" + text if new else text)


def lanes(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """Each span with the first lane that is free when it starts: overlapping work stands one below the other."""
    ends: list[float] = []
    placed = []
    for span in sorted(spans, key=lambda s: s.start):
        lane = next((i for i, end in enumerate(ends) if end <= span.start), len(ends))
        if lane == len(ends):
            ends.append(span.end)
        else:
            ends[lane] = span.end
        placed.append((lane, span))
    return placed
