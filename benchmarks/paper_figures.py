"""What is read out of a run's folder, and the tables and plots made of it."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from paper_runs import Figures, load
from speech.edits import word_edits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Two-sided 95 % quantiles of Student's t for so many seeds."""

JUDGES = {"training judge": "hypothesis", "second judge": "hypothesis_second"}
EDITS = ("substitutions", "deletions", "insertions")
CURVES = {"valid/wer": "training judge", "valid/wer_second": "second judge"}

Rows = Mapping[str, Sequence[Figures]]
"""Figures of the seeds by the row's label."""


def read_tts(folder: Path) -> Figures:
    """Of the last evaluation: its summary, and the edits of the greedy speech by judge."""
    when, lines = last_evaluation(folder)
    edits = {judge: dict.fromkeys(EDITS, 0) for judge in JUDGES}
    for line in lines:
        for judge, key in JUDGES.items():
            counts = word_edits(line["reference"], line[key] or "", line["language"])
            for edit in EDITS:
                edits[judge][edit] += getattr(counts, edit)
    return {"summary": load(folder / "summary.json")[when], "edits": edits}


def read_asr(folder: Path) -> Figures:
    """Of the last evaluation: reference words and edits by kind of utterance."""
    _, lines = last_evaluation(folder)
    kinds = kinds_of(Path("assets/speech/test.jsonl"))
    found = {kind: Counter(dict.fromkeys(("words", "sub", "del", "ins"), 0)) for kind in kinds}
    for line in lines:
        words = word_edits(line["reference"], line["hypothesis"], line["language"]).reference_length
        for kind, ids in kinds.items():
            if line["id"] in ids:
                found[kind].update(words=words, **{edit: line[edit] for edit in ("sub", "del", "ins")})
    return {kind: {"utterances": len(kinds[kind]), **counts} for kind, counts in found.items()}


def read_curves(folder: Path) -> Figures:
    """WER on `data.valid` by both judges: [step, rate] pairs."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {key: [[line["step"], line[key]] for line in lines if key in line] for key in CURVES}


def last_evaluation(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """`after`, or `before` where nothing was trained; and its utterances."""
    when = "after" if (folder / "evaluation-after.json").is_file() else "before"
    lines: list[dict[str, Any]] = load(folder / f"evaluation-{when}.json")["hypotheses"]
    return when, lines


def kinds_of(manifest: Path) -> dict[str, set[str]]:
    """Ids of the English test utterances: the shorter and the longer half, and those with two keywords or more."""
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    english = [line for line in lines if line["language"] == "en"]
    middle = statistics.median(line["duration"] for line in english)
    return {
        "short": {line["id"] for line in english if line["duration"] <= middle},
        "long": {line["id"] for line in english if line["duration"] > middle},
        "keyword-rich": {line["id"] for line in english if len(line.get("keywords", ())) >= 2},
        "all, with Mandarin": {line["id"] for line in lines},
    }


TTS_COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("WER, training judge", ("wer",), "%"),
    ("WER, second judge", ("wer_second",), "%"),
    ("sampled, training judge", ("sampled", "wer"), "%"),
    ("sampled, second judge", ("sampled", "wer_second"), "%"),
    ("speaker similarity", ("speaker_similarity",), ".3f"),
    ("seconds", ("duration_mean",), ".2f"),
    ("F0 std, semitones", ("f0_std",), ".2f"),
    ("no stop", ("no_stop_rate",), "%"),
)
"""Heading, keys in an evaluation's summary, form."""


def report_tts(rows: Rows, plot: Path) -> None:
    """The table, the edits behind the greedy WER, and a plot of that WER."""
    rows = {label: seeds for label, seeds in rows.items() if seeds}
    print_table(
        ["", "seeds", *(f"{name}{', %' if form == '%' else ''}" for name, _, form in TTS_COLUMNS)],
        [
            [
                label,
                str(len(seeds)),
                *(cell([of(s["summary"], keys) for s in seeds], form) for _, keys, form in TTS_COLUMNS),
            ]
            for label, seeds in rows.items()
        ],
    )
    print("\nSubstitutions / deletions / insertions, greedy, means over seeds:\n")
    print_table(
        ["", *JUDGES],
        [[label, *(edits(s["edits"][j] for s in seeds) for j in JUDGES)] for label, seeds in rows.items()],
    )
    plot_bars(
        {
            name: {label: [100 * s["summary"][keys[0]] for s in seeds] for label, seeds in rows.items()}
            for name, keys, _ in TTS_COLUMNS[:2]
        },
        plot,
    )


def report_asr(rows: Rows, plot: Path) -> None:
    """WER and edits by kind of utterance."""
    rows = {label: seeds for label, seeds in rows.items() if seeds}
    kinds = next(iter(rows.values()))[0]
    rates: dict[str, dict[str, list[float]]] = {
        kind: {
            label: [(s[kind]["sub"] + s[kind]["del"] + s[kind]["ins"]) / s[kind]["words"] for s in seeds]
            for label, seeds in rows.items()
        }
        for kind in kinds
    }
    short = ("sub", "del", "ins")
    print_table(
        ["", "seeds", *(f"{kind} ({c['utterances']}): WER, %; S / D / I" for kind, c in kinds.items())],
        [
            [
                label,
                str(len(seeds)),
                *(f"{cell(rates[k][label], '%')}; {edits((s[k] for s in seeds), short)}" for k in kinds),
            ]
            for label, seeds in rows.items()
        ],
    )
    plot_bars({kind: {label: [100 * v for v in seeds] for label, seeds in rates[kind].items()} for kind in kinds}, plot)


def report_stability(rows: Rows, plot: Path) -> None:
    """WER by step, a table and a panel for each judge."""
    curves = {
        judge: {label: dict(seeds[0][key]) for label, seeds in rows.items() if seeds} for key, judge in CURVES.items()
    }
    for judge, lines in curves.items():
        places = sorted({step for line in lines.values() for step in line})
        print(f"\nWER on `data.valid`, %, {judge}, by step:\n")
        print_table(
            ["", *map(str, places)],
            [[label, *(f"{100 * v[p]:.1f}" if p in v else "–" for p in places)] for label, v in lines.items()],
        )
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 4), squeeze=False)
    for axis, (judge, lines) in zip(axes[0], curves.items(), strict=True):
        for label, line in lines.items():
            axis.plot(list(line), [100 * value for value in line.values()], label=label)
        axis.set(xlabel="step", ylabel="WER, %", title=judge)
    axes[0][0].legend(fontsize=8)
    save(figure, plot)


def of(summary: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    """A nested value of an evaluation's summary."""
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % confidence interval (Student's t); NaN for a single value."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.fmean(values), T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def cell(values: Sequence[float | None], form: str) -> str:
    """Mean ± half interval as Markdown."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, half = interval(known)
    spread = "" if math.isnan(half) else f" ± {show(half, form)}"
    return show(mean, form) + spread


def show(value: float, form: str) -> str:
    return f"{100 * value:.1f}" if form == "%" else format(value, form)


def edits(counts: Any, keys: Sequence[str] = EDITS) -> str:
    """Means over seeds: substitutions / deletions / insertions."""
    seeds = list(counts)
    return " / ".join(f"{statistics.fmean(seed[key] for seed in seeds):.0f}" for key in keys)


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A Markdown table; the first column is text."""
    print("| " + " | ".join(header) + " |")
    print("|---" + "|--:" * (len(header) - 1) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |")


def plot_bars(bars: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """A panel for each kind of WER (%), a bar for each row, with every seed as a dot."""
    figure, axes = plt.subplots(1, len(bars), figsize=(5 * len(bars), 4), sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes[0], bars.items(), strict=True):
        for place, values in enumerate(rows.values()):
            axis.bar(place, statistics.fmean(values), color="#8fb3d9")
            axis.plot([place] * len(values), values, "k.", markersize=4)
        axis.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right", fontsize=8)
        axis.set_title(name, fontsize=10)
    axes[0][0].set_ylabel("WER, %")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\nplot: {path}")
