"""Our version of the paper's tables and of its stability plot (2509.18569): which objective and which rewards do what.

    python benchmarks/paper_table.py tts --seeds 1 2 3         # base, GRPO, DiffRO, combined, filter, R1 to R3
    python benchmarks/paper_table.py asr --seeds 1 2 3         # base, R1, R1+R2, R1+R2+R3, by kind of utterance
    python benchmarks/paper_table.py stability --steps 300     # WER while training goes on

Every row is `speechrl train` on a demo configuration with a few overrides; a run that is complete is not run again, one
that was interrupted is resumed. Prints Markdown, and draws a plot beside the runs (`runs/paper/<table>.png`). With
`--jobs 2` two runs share the machine, each with one thread for everything: more runs an hour on two cores, as small
models leave a second thread idle.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNS = Path("runs/paper")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Two-sided 95 % quantiles of Student's t for so many seeds."""

SINGLE_THREADED = ("engines.threads=1", "learner.threads=1", "encoder.threads=1", "rewards.sound.threads=1")

NO_STOP = "{name: no_stop, weight: 0.5}"
"""In every TTS row: without it a policy may leave speech unfinished, which no judge can hear."""
TTS_R1 = f"{{name: tts_accuracy}}, {NO_STOP}"
TTS_R2 = "{name: duration, weight: 0.3}"
TTS_R3 = "{name: diversity, weight: 0.1}"
ASR_R1 = "{name: accuracy}"
ASR_R2 = "{name: hallucination, weight: 0.3}"
ASR_R3 = "{name: keyword, weight: 0.2}"


@dataclass(frozen=True)
class Row:
    """A variant: its label, a name for its runs, and what it changes in the configuration."""

    label: str
    name: str
    overrides: tuple[str, ...] = ()


def rewards(*items: str) -> str:
    """An override of `rewards.items`."""
    return f"rewards.items=[{', '.join(items)}]"


BASE = Row("no RL", "base", ("steps=0", "evaluation.after=false"))
"""Its `before` is the first row; the others are evaluated after training only."""

TTS_ROWS = (
    Row("GRPO, R1", "grpo", ("objective=grpo", rewards(TTS_R1))),
    Row("DiffRO, R1", "diffro", ("objective=diffro", rewards(TTS_R1))),
    Row(
        "GRPO + DiffRO, R1, no filter",
        "nofilter",
        ("objective=combined", "learner.diffro.filter=none", rewards(TTS_R1)),
    ),
    Row("GRPO + DiffRO + filter, R1", "filter", ("objective=combined", rewards(TTS_R1))),
    Row("GRPO + DiffRO + filter, R1+R2", "r2", ("objective=combined", rewards(TTS_R1, TTS_R2))),
    Row("GRPO + DiffRO + filter, R1+R2+R3", "r3", ("objective=combined", rewards(TTS_R1, TTS_R2, TTS_R3))),
)
ASR_ROWS = (
    Row("R1", "r1", (rewards(ASR_R1),)),
    Row("R1+R2", "r2", (rewards(ASR_R1, ASR_R2),)),
    Row("R1+R2+R3", "r3", (rewards(ASR_R1, ASR_R2, ASR_R3),)),
)


@dataclass(frozen=True)
class Table:
    """What a table runs, and how its rows are read out of a run's folder."""

    config: str
    rows: tuple[Row, ...]
    columns: tuple[tuple[str, Callable[[dict[str, Any]], float | None], str], ...]
    plotted: tuple[str, ...]


def of(*keys: str) -> Callable[[dict[str, Any]], float | None]:
    """Reads a nested value of an evaluation's summary."""

    def read(summary: dict[str, Any]) -> float | None:
        value: Any = summary
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return read


TTS = Table(
    "configs/tts_demo.yaml",
    TTS_ROWS,
    (
        ("WER, training judge", of("wer"), "%"),
        ("WER, second judge", of("wer_second"), "%"),
        ("sampled, training judge", of("sampled", "wer"), "%"),
        ("sampled, second judge", of("sampled", "wer_second"), "%"),
        ("speaker similarity", of("speaker_similarity"), ".3f"),
        ("seconds", of("duration_mean"), ".2f"),
        ("F0 std, semitones", of("f0_std"), ".2f"),
        ("no stop", of("no_stop_rate"), "%"),
    ),
    ("WER, training judge", "WER, second judge"),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("tts", "asr", "stability"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="of every run (default: the configuration's; stability: 300)")
    parser.add_argument("--every", type=int, default=20, help="stability: steps between two evaluations")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each with single threads (1)")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is there")
    arguments = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    runner = Runner(arguments.jobs, arguments.report_only)
    if arguments.table == "stability":
        stability(runner, arguments.seeds[0], arguments.steps or 300, arguments.every)
        return
    steps = () if arguments.steps is None else (f"steps={arguments.steps}",)
    if arguments.table == "tts":
        report_tts(*with_base(runner, TTS.config, TTS.rows, arguments.seeds, steps, "tts"))
    else:
        report_asr(*with_base(runner, "configs/asr_demo.yaml", ASR_ROWS, arguments.seeds, steps, "asr"))


Folders = dict[Row, list[Path]]


class Runner:
    """Runs what is not complete yet, `jobs` at a time."""

    def __init__(self, jobs: int, report_only: bool) -> None:
        self.jobs, self.report_only = jobs, report_only

    def run(self, config: str, rows: Sequence[Row], seeds: Sequence[int], more: Sequence[str], table: str) -> Folders:
        """Folders of the completed runs of each row."""
        # Seed by seed, so that an interrupted table has whole columns.
        planned = [(row, RUNS / f"{table}-{row.name}-seed{seed}", seed) for seed in seeds for row in rows]
        with ThreadPoolExecutor(self.jobs) as pool:
            done = list(pool.map(lambda plan: self._train(config, *plan, more), planned))
        folders: Folders = {row: [] for row in rows}
        for (row, folder, _), complete in zip(planned, done, strict=True):
            if complete:
                folders[row].append(folder)
        return folders

    def _train(self, config: str, row: Row, folder: Path, seed: int, more: Sequence[str]) -> bool:
        settings = [f"name={folder.name}", f"runs_dir={RUNS}", f"seed={seed}", *more, *row.overrides]
        if self.jobs > 1:
            settings += SINGLE_THREADED
        if not completed(folder) and not self.report_only:
            print(f"{row.label}, seed {seed}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "cluster.cli", "train", config, *settings]
            with (RUNS / f"{folder.name}.txt").open("w", encoding="utf-8") as output:
                subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT)
        return completed(folder)


def with_base(
    runner: Runner, config: str, rows: Sequence[Row], seeds: Sequence[int], more: Sequence[str], table: str
) -> tuple[Path, Folders]:
    """Folder of a run that only evaluates the start, and the folders of each row."""
    (base,) = runner.run(config, [BASE], seeds[:1], (), table)[BASE] or [None]
    if base is None:
        raise SystemExit("the start was not evaluated yet")
    return base, runner.run(config, rows, seeds, ("evaluation.before=false", *more), table)


def completed(folder: Path) -> bool:
    """Whether a run has come to its end."""
    file = folder / "summary.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["status"] == "completed"


def summary(folder: Path) -> dict[str, Any]:
    """A run's `summary.json`."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return content


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


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A Markdown table; the first column is text."""
    print("| " + " | ".join(header) + " |")
    print("|---" + "|--:" * (len(header) - 1) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |")


def report_tts(base: Path, folders: Folders) -> None:
    """The table, the edits behind both judges' greedy WER, and a plot of it."""
    rows = {BASE.label: [(summary(base)["before"], base / "evaluation-before.json")]}
    rows |= {
        row.label: [(summary(folder)["after"], folder / "evaluation-after.json") for folder in found]
        for row, found in folders.items()
        if found
    }
    heading = [f"{name}{', %' if form == '%' else ''}" for name, _, form in TTS.columns]
    lines = [
        [label, *(cell([read(item) for item, _ in found], form) for _, read, form in TTS.columns)]
        for label, found in rows.items()
    ]
    print_table(["", *heading], lines)
    print("\nSubstitutions / deletions / insertions, greedy, means over seeds:\n")
    keys = {"training judge": "hypothesis", "second judge": "hypothesis_second"}
    lines = [
        [label, *(judged_edits([file for _, file in found], key) for key in keys.values())]
        for label, found in rows.items()
    ]
    print_table(["", *keys], lines)
    bars = {
        name: {label: [100 * (read(item) or 0.0) for item, _ in found] for label, found in rows.items()}
        for name, read, _ in TTS.columns
        if name in TTS.plotted
    }
    plot_bars(bars, "WER, %", RUNS / "tts.png")


def judged_edits(files: Sequence[Path], key: str) -> str:
    """Mean edits of what a judge read, `key`, in evaluations of speech."""
    from rewards.edits import EditCounts, word_edits

    counts = []
    for file in files:
        read = json.loads(file.read_text(encoding="utf-8"))["hypotheses"]
        edits = (word_edits(line["reference"], line[key] or "", line["language"]) for line in read)
        counts.append(sum(edits, EditCounts()))
    means = (
        statistics.fmean(getattr(count, edit) for count in counts)
        for edit in ("substitutions", "deletions", "insertions")
    )
    return " / ".join(f"{mean:.0f}" for mean in means)


@dataclass
class Part:
    """Edits of one kind of test utterances."""

    words: int = 0
    edits: dict[str, int] = field(default_factory=lambda: {"sub": 0, "del": 0, "ins": 0})

    @property
    def rate(self) -> float:
        return sum(self.edits.values()) / max(1, self.words)


def report_asr(base: Path, folders: Folders) -> None:
    """WER and S/D/I by kind of utterance."""
    kinds = kinds_of("assets/speech/test.jsonl")
    rows: dict[str, list[dict[str, Part]]] = {BASE.label: [parts(base / "evaluation-before.json", kinds)]}
    for row, found in folders.items():
        if found:
            rows[row.label] = [parts(folder / "evaluation-after.json", kinds) for folder in found]
    header = ["", *(f"{kind} ({len(ids)}): WER, %; S / D / I" for kind, ids in kinds.items())]
    lines = []
    for label, seeds in rows.items():
        line = [label]
        for kind in kinds:
            edits = (statistics.fmean(seed[kind].edits[e] for seed in seeds) for e in ("sub", "del", "ins"))
            line.append(
                cell([seed[kind].rate for seed in seeds], "%") + "; " + " / ".join(f"{value:.0f}" for value in edits)
            )
        lines.append(line)
    print_table(header, lines)
    bars = {kind: {label: [100 * s[kind].rate for s in seeds] for label, seeds in rows.items()} for kind in kinds}
    plot_bars(bars, "WER, %", RUNS / "asr.png")


def kinds_of(manifest: str) -> dict[str, set[str]]:
    """Ids of the English test utterances: the shorter and the longer half, and those with two keywords or more."""
    lines = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()]
    english = [line for line in lines if line["language"] == "en"]
    middle = statistics.median(line["duration"] for line in english)
    return {
        "short": {line["id"] for line in english if line["duration"] <= middle},
        "long": {line["id"] for line in english if line["duration"] > middle},
        "keyword-rich": {line["id"] for line in english if len(line.get("keywords", ())) >= 2},
        "all, with Mandarin": {line["id"] for line in lines},
    }


def parts(file: Path, kinds: dict[str, set[str]]) -> dict[str, Part]:
    """Counts of an evaluation by kind."""
    from rewards.edits import word_edits

    found = {kind: Part() for kind in kinds}
    for line in json.loads(file.read_text(encoding="utf-8"))["hypotheses"]:
        words = word_edits(line["reference"], line["hypothesis"], line["language"]).reference_length
        for kind, ids in kinds.items():
            if line["id"] in ids:
                found[kind].words += words
                for edit in found[kind].edits:
                    found[kind].edits[edit] += line[edit]
    return found


def stability(runner: Runner, seed: int, steps: int, every: int) -> None:
    """WER by both judges on `data.valid` while training goes on (the paper's Fig. 3)."""
    more = (f"steps={steps}", f"evaluation.every={every}", "evaluation.before=false", "evaluation.after=false")
    rows = TTS_ROWS[:4]
    folders = runner.run(TTS.config, rows, [seed], more, f"stability{steps}")
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {"valid/wer": {}, "valid/wer_second": {}}
    for row, found in folders.items():
        for folder in found:
            lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            for key, curve in curves.items():
                curve[row.label] = [(line["step"], 100 * line[key]) for line in lines if key in line]
    for key, curve in curves.items():
        places = sorted({step for points in curve.values() for step, _ in points})
        print(f"\n`{key}`, %, by step:\n")
        values = {label: dict(points) for label, points in curve.items()}
        print_table(
            ["", *map(str, places)],
            [[label, *(f"{v[p]:.1f}" if p in v else "–" for p in places)] for label, v in values.items()],
        )
    plot_curves(curves, RUNS / f"stability{steps}.png")


def plot_bars(bars: dict[str, dict[str, list[float]]], unit: str, path: Path) -> None:
    """Bars with every seed as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(bars), figsize=(5 * len(bars), 4), sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes[0], bars.items(), strict=True):
        for place, values in enumerate(rows.values()):
            axis.bar(place, statistics.fmean(values), color="#8fb3d9")
            axis.plot([place] * len(values), values, "k.", markersize=4)
        axis.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right", fontsize=8)
        axis.set_title(name, fontsize=10)
    axes[0][0].set_ylabel(unit)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\nplot: {path}")


def plot_curves(curves: dict[str, dict[str, list[tuple[int, float]]]], path: Path) -> None:
    """One panel a judge, one line a variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 4), squeeze=False)
    for axis, (name, rows) in zip(axes[0], curves.items(), strict=True):
        for label, points in rows.items():
            axis.plot([s for s, _ in points], [v for _, v in points], label=label)
        axis.set(xlabel="step", ylabel="WER, %", title=name)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\nplot: {path}")


if __name__ == "__main__":
    main()
