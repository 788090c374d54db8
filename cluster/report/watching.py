"""What is known of a run that goes on: from its folder, or from the metrics that its cluster gives to Prometheus."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from cluster.monitoring.progress import REWARD_PARTS, SHOWN
from cluster.monitoring.prometheus import PREFIX, gauges
from speech.errors import UserError, last_line

if TYPE_CHECKING:
    from cluster.jobs.client import JobsClient  # loads Ray, which a folder does not need

KEPT = 1_000
"""Steps that are looked at: of a longer run the last ones."""
MESSAGES = 5
"""Warnings of the log that are shown."""
TAIL_BYTES = 8 * 2**20
"""Of a long file, what is read at first."""
SCRAPE_S = 5.0
"""For a node to answer with its metrics."""
FLEET = ("fleet/healthy", "fleet/stale", "fleet/restarts", "fleet/encoders", "fleet/reward_actors")
SERIES = {gauges({metric: 0.0})[0].name: metric for metric in (*(key for _, key, _ in SHOWN), *FLEET, "time/step")}
"""Metric by its name for Prometheus."""


@dataclass(frozen=True, slots=True)
class View:
    """A run at one moment.

    Attributes:
        steps: of the whole run; None where the source does not say.
        lines: the last steps, as in `metrics.jsonl`; of a cluster those since the view began.
        age: seconds since the last step ended, as far as is known.
        messages: warnings, the newest last.
        status: how it ended; empty while it goes on.
    """

    name: str
    steps: int | None
    lines: Sequence[Mapping[str, Any]]
    age: float | None
    messages: Sequence[str] = ()
    status: str = ""


class Source(Protocol):
    """Where the numbers come from."""

    def look(self) -> View: ...


class FolderSource:
    """A run's folder, of this machine or of a file system that it shares."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: it is no run's.
        """
        self._folder, config = folder, folder / "config.yaml"
        if not config.is_file():
            raise UserError(f"{folder}: no run is there; name the folder of a run, such as runs/asr_demo")
        try:
            self._steps: int | None = int(yaml.safe_load(config.read_text(encoding="utf-8"))["steps"])
        except (ValueError, TypeError, LookupError, yaml.YAMLError) as error:
            raise UserError(f"{config}: not a run's configuration ({last_line(error)})") from error
        self._metrics = Tail(folder / "metrics.jsonl", by_step=True)
        self._log = Tail(folder / "log.jsonl", by_step=False)

    def look(self) -> View:
        lines = self._metrics.lines()
        warnings = [line for line in self._log.lines() if line.get("level") in ("WARNING", "ERROR", "CRITICAL")]
        age = time.time() - (self._folder / "metrics.jsonl").stat().st_mtime if lines else None
        messages = [f"step {line.get('step')}: {_first_line(line.get('message'))}" for line in warnings[-MESSAGES:]]
        return View(self._folder.resolve().name, self._steps, lines, age, messages, self._status())

    def _status(self) -> str:
        try:
            return str(json.loads((self._folder / "summary.json").read_text(encoding="utf-8"))["status"])
        except (FileNotFoundError, ValueError, LookupError):  # the run goes on
            return ""


def _first_line(text: Any) -> str:
    return str(text).partition("\n")[0]


class Tail:
    """The last lines of a file of JSON objects that grows."""

    def __init__(self, file: Path, by_step: bool) -> None:
        """
        Args:
            by_step: a line replaces those of its step and of later ones: a run that falls back to a checkpoint cuts
                the file and goes on from there.
        """
        self._file, self._by_step = file, by_step
        self._lines: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        self._read, self._rest = 0, b""

    def lines(self) -> list[Mapping[str, Any]]:
        """With what was written since the last call."""
        if not self._file.is_file():
            return []
        size = self._file.stat().st_size
        if size < self._read:
            self._lines.clear()
            self._read, self._rest = 0, b""
        with self._file.open("rb") as file:
            begin = max(self._read, size - TAIL_BYTES)
            file.seek(begin)
            *whole, rest = ((self._rest if begin == self._read else b"") + file.read()).split(b"\n")
            self._read, self._rest = file.tell(), rest
        for line in whole:
            try:
                value = json.loads(line)
            except ValueError:  # the first line of a tail is cut
                continue
            while self._by_step and self._lines and self._lines[-1]["step"] >= value["step"]:
                self._lines.pop()
            self._lines.append(value)
        return list(self._lines)


class ClusterSource:
    """A run on a Ray cluster, by what its nodes give to Prometheus. Their metrics ports must be reachable from here."""

    def __init__(self, client: JobsClient, run: str | None) -> None:
        """
        Args:
            client: of the cluster's dashboard.
            run: name of the run; None where only one trains there.
        """
        self._client, self._run = client, run
        self._lines: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        self._ended = time.monotonic()

    def look(self) -> View:
        """
        Raises:
            UserError: no node answers, no run is there, or several are and none was named.
        """
        runs = self._scrape()
        if self._run is None and len(runs) > 1:
            raise UserError(f"several runs train there: choose one with --run: {', '.join(sorted(runs))}")
        name = self._run or next(iter(runs), None)
        if name is None or name not in runs:
            known = f"those that have are {', '.join(sorted(runs))}" if runs else "none has"
            raise UserError(f"no run{'' if name is None else f' {name!r}'} has ended a step there; {known}")
        line = runs[name]
        if not self._lines or line["step"] != self._lines[-1]["step"]:
            if self._lines:
                self._ended = time.monotonic()
            self._lines.append(line)
        messages = ["it does not move (the log of the run says what it waits for)"] if line.get("stalled") else []
        age = time.monotonic() - self._ended if len(self._lines) > 1 else None
        return View(name, None, list(self._lines), age, messages)

    def _scrape(self) -> dict[str, dict[str, Any]]:
        """The last step of each run, by its name."""
        import requests
        from prometheus_client.parser import text_string_to_metric_families

        targets = self._client.metrics_targets()
        runs: dict[str, dict[str, Any]] = {}
        failed = []
        for target in targets:
            try:
                answer = requests.get(f"http://{target}/metrics", timeout=SCRAPE_S)
                answer.raise_for_status()
            except requests.RequestException as error:
                failed.append(f"{target}: {last_line(error)}")
                continue
            for family in text_string_to_metric_families(answer.text):
                for sample in family.samples:
                    name = sample.name.removeprefix("ray_")
                    if name.startswith(PREFIX) and "run" in sample.labels:
                        line = runs.setdefault(sample.labels["run"], {})
                        if name in SERIES:
                            line[SERIES[name]] = sample.value
                        elif name == f"{PREFIX}reward_part":
                            line[f"{REWARD_PARTS}{sample.labels['reward']}"] = sample.value
                        elif name in (f"{PREFIX}step", f"{PREFIX}stalled"):
                            line[name.removeprefix(PREFIX)] = int(sample.value)
        if len(failed) == len(targets):
            reason = "; ".join(failed[:3]) or "it has none"
            raise UserError(f"no node of the cluster gives its metrics to this machine: {reason}")
        return {name: line for name, line in runs.items() if "step" in line}
