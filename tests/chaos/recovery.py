"""How long a run was without samples after its engines were killed, against what an engine's start took in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.end_to_end.runs import records

STARTED = re.compile(r"engine (\d+): started in ([\d.]+) s")
WITHOUT_ENGINES = ("kill_all_engines", "kill_engine", "kill_engine_core")
"""Kinds after which a run with one engine has none; with several, only the first of them leaves none."""


@dataclass(frozen=True)
class Recovery:
    """In seconds.

    Attributes:
        samples: from the strike to the end of the first generation after it.
        start: of the engine that took the place of a killed one, from the request for its actor to its answer. The
            longest where several were killed: they share the machine.
        first_start: of the engines that the run began with.
    """

    samples: float
    start: float
    first_start: float


def recovery(
    folder: Path, fault: Mapping[str, Any], previous: float = 0.0, following: float = math.inf
) -> Recovery | None:
    """What a run's log and timeline say of a fault that left it without engines while it sampled.

    None where they do not tell: when the next fault, at `following` seconds since the epoch, came before the samples
    did; and when no samples came since the fault before this one, at `previous`: then both are waited for.
    """
    struck = float(fault["time"])
    starts = [
        (datetime.fromisoformat(line["time"]).timestamp(), float(found[2]))
        for line in records(folder / "log.jsonl")
        if (found := STARTED.fullmatch(line["message"]))
    ]
    done = [call.end for call in generations(folder / "timeline.json")]
    ends = sorted(end for end in done if end > struck)
    before = [seconds for time, seconds in starts if time < struck]
    after = [seconds for time, seconds in starts if struck < time <= (ends[0] if ends else 0.0)]
    recovered = any(previous < end < struck for end in done)
    if not recovered or not ends or ends[0] > following or not before or not after:
        return None
    return Recovery(ends[0] - struck, max(after), max(before))


@dataclass(frozen=True)
class Sampled:
    """One call of an engine: which engine, in which step, and when it was finished, in seconds since the epoch."""

    engine: str
    step: int
    end: float


def generations(timeline: Path) -> list[Sampled]:
    """The calls that engines finished, by a run's timeline."""
    # The trace is an array that is never closed.
    events = json.loads(timeline.read_text(encoding="utf-8").rstrip().rstrip(",") + "]")
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    return [
        Sampled(names[event["pid"]], event["args"]["step"], (event["ts"] + event["dur"]) / 1e6)
        for event in events
        if event["name"] == "generate" and names[event["pid"]].startswith("engine")
    ]
