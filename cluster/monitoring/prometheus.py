"""A run's metrics for Prometheus, through the agent that Ray runs on every node. Only the controller exports."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.monitoring.periodic import Periodic

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge, Histogram

PREFIX = "speechrl_"
"""Of every name; Ray puts `ray_` before it."""

_LABELLED = {"reward_part": "reward", "reward_detail": "detail", "staleness": "versions"}
"""Families whose last part is a label rather than a name, with the label."""

_TOTALS = {
    "rollout/trajectories": "trajectories",
    "rollout/tokens": "tokens",
    "rollout/audio_seconds": "audio_seconds",
    "reward/invalid": "invalid_rewards",
}
"""Counted over steps besides."""

_NOT_PHASES = ("step", "idle_fraction", "tokens_per_second")
REPEAT_S = 5.0
_BOUNDARIES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]


@dataclass(frozen=True, slots=True)
class Series:
    """One number as Prometheus knows it, without the `run` label."""

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


def gauges(metrics: Mapping[str, float]) -> list[Series]:
    """Metrics of a step as gauges; those of phases are left to `phase_seconds`.

    The step is a gauge, not a label: a label with a new value every step is a new time series every step.
    """
    found = []
    for name, value in metrics.items():
        head, _, rest = name.partition("/")
        if head == "time" and rest not in _NOT_PHASES:
            continue
        if head in _LABELLED and rest:
            found.append(Series(PREFIX + head, value, {_LABELLED[head]: rest}))
        else:
            found.append(Series(PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", name), value))
    return found


def totals(metrics: Mapping[str, float]) -> list[Series]:
    """What a step adds to counters."""
    return [Series(f"{PREFIX}{total}_total", metrics[name]) for name, total in _TOTALS.items() if name in metrics]


def phase_seconds(metrics: Mapping[str, float]) -> list[Series]:
    """What a step adds to the histogram of phases."""
    return [
        Series(f"{PREFIX}phase_seconds", value, {"phase": name.removeprefix("time/")})
        for name, value in metrics.items()
        if name.startswith("time/") and name.removeprefix("time/") not in _NOT_PHASES
    ]


class Exporter(Periodic):
    """Gives the numbers of each step to Ray's agent, which Prometheus reads. Needs a running Ray.

    Ray forgets a gauge once it has exported it. So the last values are set again every few seconds, from a thread that
    `begin` starts: a step may take minutes, and Prometheus looks more often.
    """

    def __init__(self, run: str) -> None:
        super().__init__("metrics", REPEAT_S)
        self._run_label = {"run": run}
        self._lock = threading.Lock()
        self._last: dict[tuple[str, ...], Series] = {}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._histogram: Histogram | None = None

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Export a finished step's metrics."""
        with self._lock:
            # A label that this step does not have, such as an age of samples, has no value any more.
            self._last = {key: series for key, series in self._last.items() if not series.labels}
        for series in (Series(f"{PREFIX}step", step), *gauges(metrics)):
            self.gauge(series)
        for series in totals(metrics):
            if series.value > 0:  # Ray refuses to add nothing
                self._counter(series).inc(series.value, self._run_label)
        for series in phase_seconds(metrics):
            self._phases(series).observe(series.value, self._run_label | series.labels)

    def gauge(self, series: Series) -> None:
        """Set one gauge, until it is set again."""
        with self._lock:
            self._last[series.name, *series.labels.values()] = series
            self._set(series)

    def look(self) -> None:
        """Set all gauges again."""
        with self._lock:
            for series in self._last.values():
                self._set(series)

    def _set(self, series: Series) -> None:
        from ray.util.metrics import Gauge

        if series.name not in self._gauges:
            self._gauges[series.name] = Gauge(series.name, tag_keys=("run", *series.labels))
        self._gauges[series.name].set(series.value, self._run_label | series.labels)

    def _counter(self, series: Series) -> Counter:
        from ray.util.metrics import Counter

        if series.name not in self._counters:
            self._counters[series.name] = Counter(series.name, tag_keys=("run",))
        return self._counters[series.name]

    def _phases(self, series: Series) -> Histogram:
        from ray.util.metrics import Histogram

        if self._histogram is None:
            self._histogram = Histogram(series.name, boundaries=_BOUNDARIES, tag_keys=("run", *series.labels))
        return self._histogram
