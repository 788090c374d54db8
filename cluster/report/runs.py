"""What a run's folder holds, as far as it can be read: a running or broken run is reported, too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cluster.config import RunConfig
from cluster.config.keys import defaults
from cluster.runs import durable
from cluster.runs.folder import changed_keys, with_defaults
from speech.errors import UserError

STAGES = ("before", "after")
"""The evaluations of the test split, in order."""


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: unlike that of every other run of the page.
        path: its folder.
        config: as in `config.yaml`, with the defaults of keys that an earlier release did not know.
        metrics: lines of `metrics.jsonl`, in the order of their steps.
        evaluations: by stage; only those that were made.
        summary: of `summary.json`; empty when the run has not ended.
        notes: what could not be read.
    """

    name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def series(self, name: str) -> list[float]:
        """The values of a metric, of the steps that have it."""
        return [float(line[name]) for line in self.metrics if isinstance(line.get(name), int | float)]

    @cached_property
    def steps(self) -> list[int]:
        return [int(line["step"]) for line in self.metrics]

    @cached_property
    def names(self) -> list[str]:
        """All metrics, in the order of their first appearance."""
        return [name for name in dict.fromkeys(key for line in self.metrics for key in line) if name != "step"]

    @property
    def status(self) -> str:
        """How the run ended, as far as its folder says."""
        return str(self.summary.get("status", "not ended"))

    def score(self, stage: str, name: str) -> float | None:
        """A score of the test split; None when it was not made."""
        value = self.evaluations.get(stage, {}).get("summary", {}).get(name)
        return float(value) if isinstance(value, int | float) else None

    def hypotheses(self, stage: str) -> list[Mapping[str, Any]]:
        """Lines of an evaluation; none when it was not made."""
        return list(self.evaluations.get(stage, {}).get("hypotheses", ()))


def read_runs(paths: Iterable[str | Path]) -> list[RunRecord]:
    """All runs, in order.

    Raises:
        UserError: a folder is not a run's, is named twice, or its metrics are damaged before their last line.
    """
    folders = [Path(path) for path in paths]
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"{folder}: named twice")
        seen.add(folder.resolve())
    return [read_run(folder, name) for folder, name in zip(folders, _labels(folders), strict=True)]


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """One run; see `read_runs`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a run, such as runs/asr_demo")
    if not (folder / "config.yaml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: is no run, it holds neither config.yaml nor metrics.jsonl; name a folder of runs/")
    notes: list[str] = []
    metrics = [line for line in durable.read(folder / "metrics.jsonl") if isinstance(line.get("step"), int)]
    evaluations = {}
    for stage in STAGES:
        file = folder / f"evaluation-{stage}.json"
        content = _json(file, notes)
        if content and not _is_evaluation(content):
            notes.append(f"{file.name} is no evaluation")
        elif content:
            evaluations[stage] = content
    summary = _json(folder / "summary.json", notes)
    if not metrics:
        notes.append("no step is finished")
    if not summary:
        notes.append("there is no summary.json: the run goes on, or was killed")
    if summary and "after" not in evaluations:
        notes.append("the test split was not evaluated after training")
    label = name or folder.resolve().name
    return RunRecord(label, folder, _config(folder, notes), metrics, evaluations, summary, tuple(notes))


@dataclass(frozen=True)
class Difference:
    """A key in which the runs' configurations differ, and its value in each run, in order."""

    key: str
    values: tuple[str, ...]


def config_differences(runs: Sequence[RunRecord]) -> list[Difference]:
    """Keys that do not have the same value in all runs. The runs' own names and folders are left out."""
    known = [run for run in runs if run.config]
    if len(known) < 2:
        return []
    first, *others = known
    changed = [changed_keys(first.config, other.config) for other in others]
    keys = sorted({key for found in changed for key in found} - {"name", "runs_dir"})
    rows = []
    for key in keys:
        base = next(found[key][0] for found in changed if key in found)
        values = {first.name: base} | {
            other.name: found[key][1] if key in found else base for other, found in zip(others, changed, strict=True)
        }
        rows.append(Difference(key, tuple(_written(values[run.name]) if run.config else "?" for run in runs)))
    return rows


def _written(value: Any) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of their parents as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON file's object; empty, with a note, when it cannot be read."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} is not an object")
        return {}
    return content


def _is_evaluation(content: Mapping[str, Any]) -> bool:
    lines = content.get("hypotheses")
    return (
        isinstance(content.get("summary"), dict)
        and isinstance(lines, list)
        and all(isinstance(line, dict) for line in lines)
        and all(isinstance(line.get(key), str) for line in lines for key in ("id", "reference"))
        and all(isinstance(line.get("hypothesis"), str | None) for line in lines)
    )


def _config(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        notes.append("config.yaml is not a configuration")
        return {}
    filled: dict[str, Any] = with_defaults(content, defaults(RunConfig))
    return filled
