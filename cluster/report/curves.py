"""The curves of a page: which metrics stand in which panel, and their values in few enough points."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cluster.report.runs import RunRecord

POINTS = 800
"""Longest curve that is kept as it is; of a longer one the means of so many stretches are kept."""

EDITS = ("substitutions", "deletions", "insertions")


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: what it shows.
        metrics: regular expressions of whole names; what each finds stands together.
        hint: what a healthy curve does.
        form: `number`, `percent`, or `log` for a logarithmic axis.
    """

    title: str
    metrics: tuple[str, ...]
    hint: str = ""
    form: str = "number"


SECTIONS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is it learning?",
        (
            Panel("Reward", ("reward/mean",), "Rises. All valid samples of a step."),
            Panel("Spread of the reward", ("reward/std",), "Stays above 0: without spread there is nothing to learn."),
            Panel("Error rate while sampling", ("rollout/wer",), "Falls; it is above the greedy rate.", "percent"),
            Panel("Errors per word", ("errors/.*",), "Which kind of error falls: S, D, I per word.", "percent"),
            Panel("Validation: error rates", ("valid/(?:sampled/)?[wc]er.*",), "Falls.", "percent"),
            Panel("Validation: the rest", (r"valid/(?!(?:sampled/)?[wc]er).*",)),
        ),
    ),
    ("Parts of the reward", (Panel("*", ("reward_part/.*",)),)),
    (
        "Is it healthy?",
        (
            Panel("Length", ("rollout/length_mean",), "Tokens. Steady; growth warns of loops."),
            Panel("Cut off by the token budget", ("rollout/no_stop_share",), "Near 0.", "percent"),
            Panel("Entropy", ("learner/entropy",), "Nats. Falls slowly; at 0 exploration has ended."),
            Panel("KL", ("learner/.*kl",), "Small, grows slowly."),
            Panel("Log-prob gap, learner and engine", ("logprob_gap/.*", "publish/probe_gap"), "Nats. Flat.", "log"),
            Panel("Importance weights", ("learner/importance", "learner/importance_ess"), "Both near 1."),
            Panel("Clipped tokens", ("learner/clipped_.*", "learner/importance_capped"), "A few percent.", "percent"),
            Panel("Gradient norm", ("learner/grad_norm",), "Finite, without jumps."),
            Panel("Learning rate", ("learner/lr",)),
            Panel("Groups that teach nothing", ("reward/zero_variance_share",), "Well below 1.", "percent"),
            Panel("Samples without a reward", ("reward/invalid", "reward/retried_total"), "0."),
            Panel("Staleness", ("staleness/mean", "staleness/max"), "Versions. Never above the bound."),
            Panel("DiffRO", ("diffro/.*nll",), "Falls."),
            Panel("Supervised losses", ("learner/nll", "learner/ctc", "replay/nll"), "Fall; replay does not rise."),
        ),
    ),
    (
        "Speed and fleet",
        (
            Panel("Seconds of a step", ("time/step",)),
            Panel("Phases", ("time/(?:encode|generate|reward|learn|publish|evaluate|switch|wait)",), "Seconds."),
            Panel("Throughput", ("time/tokens_per_second",), "Sampled tokens per second."),
            Panel("Idle actors", ("time/idle_fraction.*",), "Share of the step without work.", "percent"),
            Panel("Fleet", ("fleet/.*",), "Engines, encoders and reward actors that work."),
            Panel("Prefix cache", ("rollout/prefix_hit_rate",), "Well above 0.", "percent"),
        ),
    ),
    ("Details of the rewards", (Panel("*", ("reward_detail/.*",)),)),
    ("Everything else", (Panel("*", (".*",)),)),
)
"""In the order of the page. A panel with the title `*` is one panel for each metric. A metric stands where it is named
first."""


def with_errors(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines with `errors/<kind>` per reference word, where a reward gives the counts of its edits."""
    lines = [dict(line) for line in metrics]
    found = (key for line in lines for key in line if key.endswith("/substitutions"))
    prefix = next((key.removesuffix("substitutions") for key in found), None)
    for line in lines if prefix else ():
        length = line.get(f"{prefix}reference_length")
        for kind in EDITS:
            count = line.get(f"{prefix}{kind}")
            if length and count is not None:
                line[f"errors/{kind}"] = count / length
    return lines


def curves(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the page's script draws.

    Returns:
        `runs`: per run its name and the steps of its points; `sections`: titles and panels, whose traces have the
        number of the run, a label and a value (or None) per point; `flat`: metrics that never changed, and their value.
    """
    lines = [with_errors(run.metrics) for run in runs]
    values = [_columns(of_run) for of_run in lines]
    names = list(dict.fromkeys(name for columns in values for name in columns))
    flat = {name: value for name in names if (value := _constant(columns.get(name) for columns in values)) is not None}
    left = [name for name in names if name not in flat and name not in ("step", "version")]
    sections = []
    for title, panels in SECTIONS:
        drawn: list[dict[str, Any]] = []
        for panel in panels:
            chosen = [name for name in left if any(re.fullmatch(pattern, name) for pattern in panel.metrics)]
            left = [name for name in left if name not in chosen]
            for group in [[name] for name in chosen] if panel.title == "*" else [chosen] * bool(chosen):
                drawn.append(_drawn(panel, group, values))
        if drawn:
            sections.append({"title": title, "panels": drawn})
    steps = [_thinned([float(line["step"]) for line in of_run], max) for of_run in lines]
    return {
        "runs": [{"name": run.name, "steps": its} for run, its in zip(runs, steps, strict=True)],
        "sections": sections,
        "flat": {name: _short(value) for name, value in sorted(flat.items()) if name not in ("step", "version")},
    }


def _drawn(panel: Panel, names: Sequence[str], values: Sequence[Mapping[str, list[float | None]]]) -> dict[str, Any]:
    labels = _labels(names)
    traces = [
        {"run": run, "label": labels[name], "y": [_short(y) for y in _thinned(columns[name], statistics.fmean)]}
        for name in names
        for run, columns in enumerate(values)
        if name in columns
    ]
    title = names[0].partition("/")[2] if panel.title == "*" and "/" in names[0] else panel.title
    return {
        "title": title if title != "*" else names[0],
        "metric": names[0] if len(names) == 1 else f"{names[0]}, …",
        "hint": panel.hint,
        "form": panel.form,
        "traces": traces,
    }


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Names without what they begin with alike."""
    folders = {name.rpartition("/")[0] for name in names}
    return {name: name.rpartition("/")[2] if len(folders) == 1 else name for name in names}


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(key for line in lines for key in line)
    columns = {}
    for name in names:
        column = [float(v) if isinstance(v := line.get(name), int | float) else None for line in lines]
        if any(value is not None for value in column):
            columns[name] = column
    return columns


def _constant(columns: Iterable[list[float | None] | None]) -> float | None:
    """The one value that these columns hold; None when they hold several."""
    values = {value for column in columns if column for value in column if value is not None}
    return values.pop() if len(values) == 1 else None


def _thinned(values: Sequence[float | None], mean: Callable[[list[float]], float]) -> list[float | None]:
    if len(values) <= POINTS:
        return list(values)
    edges = [len(values) * i // POINTS for i in range(POINTS + 1)]
    cuts = [[v for v in values[a:b] if v is not None] for a, b in pairwise(edges)]
    return [mean(cut) if cut else None for cut in cuts]


def _short(value: float | None) -> float | None:
    """Five digits are more than a curve shows."""
    return None if value is None else float(f"{value:.5g}")
