"""Where time went, the timeline, and the ledger's account."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cluster.report.results import duration
from cluster.report.runs import RunRecord
from cluster.runs.ledger import Audit, Ledger
from speech.errors import first_of
from speech.manifests.store import DamagedStoreError, read_store

SPANS = 6000
"""Spans of a timeline on a page, of all runs together."""
_PHASES = ("encode", "generate", "reward", "learn", "publish", "evaluate", "switch")
_IDLE = "time/idle_fraction/"


def phase_rows(run: RunRecord) -> list[dict[str, Any]]:
    """Per phase its seconds in all steps, their share of the steps' time, and the median of a step.

    Phases may lie beside each other, so the shares need not add up to 1.
    """
    whole = sum(run.series("time/step"))
    rows = []
    for name in _PHASES:
        values = run.series(f"time/{name}")
        if whole and sum(values) > 0:
            share = sum(values) / whole
            rows.append(
                {"name": name, "total": duration(sum(values)), "share": share, "median": statistics.median(values)}
            )
    return rows


def idle_rows(run: RunRecord) -> list[tuple[str, float]]:
    """Components and the share of the steps in which their actors had nothing to do, on average over steps."""
    names = [name for name in run.names if name.startswith(_IDLE)]
    return [(name.removeprefix(_IDLE), statistics.fmean(run.series(name))) for name in names if run.series(name)]


def wall_notes(run: RunRecord) -> list[str]:
    """The time of the log beside that of the steps: what lies between is starting, evaluating and saving."""
    stamps = []
    path = run.path / "log.jsonl"
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            first = last = ""
            for line in file:
                first, last = first or line, line if line.endswith("\n") else last
        for line in (first, last):
            try:
                stamps.append(datetime.fromisoformat(json.loads(line)["time"]))
            except (ValueError, KeyError, TypeError):
                continue
    if len(stamps) < 2:
        return []
    steps, wall = sum(run.series("time/step")), (stamps[1] - stamps[0]).total_seconds()
    return [
        f"{duration(wall)} from the first line of the log to the last, {duration(steps)} of them in steps; the rest is "
        "starting, evaluating, saving, and time between executions"
    ]


def timeline(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What every actor did in the first, the last and evenly many steps between them, per run.

    `actors` and `names` of spans; `steps`: per step its spans, each with the numbers of its actor and its name, its
    lane, and its start and length in milliseconds since the step's first.
    """
    return [_timeline(run, SPANS // max(1, len(runs))) for run in runs]


def _timeline(run: RunRecord, most: int) -> dict[str, Any]:
    path = run.path / "timeline.json"
    actors: dict[int, str] = {}
    steps: dict[int, list[tuple[Any, ...]]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line.strip().rstrip(","))
                    if event["ph"] == "M":
                        actors[event["pid"]] = str(event["args"]["name"])
                    else:
                        span = (
                            event["pid"],
                            str(event["name"]),
                            int(event["tid"]),
                            int(event["ts"]),
                            int(event["dur"]),
                        )
                        steps.setdefault(int(event["args"]["step"]), []).append(span)
                except (ValueError, LookupError, TypeError):
                    continue  # the bracket of the beginning, or a line that was cut off
    chosen = sorted(steps)
    each = max(1, max((len(spans) for spans in steps.values()), default=1))
    room = max(2, most // each)
    if len(chosen) > room:
        chosen = sorted({chosen[round(i * (len(chosen) - 1) / (room - 1))] for i in range(room)})
    names = sorted({span[1] for step in chosen for span in steps[step]})
    labels = list(dict.fromkeys(actors.get(span[0], "?") for step in chosen for span in steps[step]))
    found = {}
    for step in chosen:
        start = min(span[3] for span in steps[step])
        found[step] = [
            [
                labels.index(actors.get(pid, "?")),
                names.index(name),
                lane,
                round((ts - start) / 1e3),
                max(1, round(dur / 1e3)),
            ]
            for pid, name, lane, ts, dur in steps[step]
        ]
    return {"actors": labels, "names": names, "steps": found}


def account(run: RunRecord) -> list[tuple[str, str]]:
    """What became of the prompts, as label and text; empty without a ledger."""
    path = run.path / "ledger.jsonl"
    if not path.is_file():
        return []
    ledger = Ledger(path)
    ids = _train_ids(run)
    audit: Audit = ledger.audit(ids or ())
    rows = [("trained", f"{audit.trained:,}"), ("rejected", f"{audit.rejected:,}")]
    rows += [(f"rejected: {reason}", f"{count:,}") for reason, count in audit.reasons.items()]
    rows.append(("whole epochs", f"{audit.complete_epochs:,}"))
    rows.append(("twice", f"{len(audit.duplicates):,}{_named(audit.duplicates)}"))
    if ids is None:
        rows.append(("missing", "not known: the list of utterances in data/ cannot be read; ask `speechrl audit`"))
    else:
        rows.append(("missing from whole epochs", f"{len(audit.missing):,}{_named(audit.missing)}"))
        rows.append(("not in the data", f"{len(audit.unknown):,}{_named(audit.unknown)}"))
    if audit.missing and ids is not None and run.config.get("staleness"):
        rows.append(("remark", "prompts in flight count as missing here; `speechrl audit` knows them"))
    return rows


def _named(prompts: Sequence[str]) -> str:
    return f": {first_of(prompts, 3)}" if prompts else ""


def _train_ids(run: RunRecord) -> list[str] | None:
    """Ids of the training split that the run kept; None where there are none, or a release wrote them otherwise."""
    try:
        with (run.path / "data" / "train.utterances").open("rb") as file:
            return [name.decode("utf-8", "surrogatepass") for name in read_store(file, str(run.path))[0].ids()]
    except (OSError, DamagedStoreError):
        return None
