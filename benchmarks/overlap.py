"""Synchronous against overlapped training, side by side: trajectories per second of the ASR demo, as a Markdown table.

    python benchmarks/overlap.py                              # S = 0 and S = 1 in turn, 3 times 30 steps each
    python benchmarks/overlap.py --variants 0:2 1:2 1:1 2:1 --repeats 5 --steps 60
    python benchmarks/overlap.py --wer --steps 180 --seeds 1 2 3

A variant is STALENESS:THREADS, with that many threads for each of engine, learner and encoder: what overlaps on few
cores takes them from one another. The variants are run in turn (A B C A B C …), so that other work on the machine hits
them alike, and all with the same importance cap. The first steps of a run are left out. `cores` is how many of the
machine's cores were busy, with whatever else ran on it. With `--wer` the test split is evaluated after training, and
every repeat has a seed of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
PARTS = ("engine", "learner")
PHASES = ("encode", "generate", "reward", "learn", "publish")


@dataclass(frozen=True)
class Result:
    """Of one run.

    Attributes:
        idle: by component, the mean over steps.
        cores: busy ones of the whole machine.
        phases: median seconds of each.
        wer: None without an evaluation.
    """

    trajectories_per_second: float
    cores: float
    phases: dict[str, float]
    staleness: float
    idle: dict[str, float]
    wer: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "asr_demo.yaml"))
    parser.add_argument("--variants", nargs="+", default=["0:2", "1:2", "1:1"], metavar="S:THREADS")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5, help="steps left out of the figures")
    parser.add_argument("--seeds", type=int, nargs="+", help="one per repeat; default 1, 2, …")
    parser.add_argument("--wer", action="store_true", help="evaluate after training")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="more configuration, for all")
    args = parser.parse_args()
    if args.steps <= args.warm_up:
        parser.error("--steps must be more than --warm-up")
    seeds = args.seeds or list(range(1, args.repeats + 1))
    results: dict[str, list[Result]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for variant in args.variants:
                results[variant].append(run(args, variant, seed, Path(folder)))
                print(f"S:threads {variant}, seed {seed}: {results[variant][-1]}", file=sys.stderr, flush=True)
    print(f"{args.steps} steps, the first {args.warm_up} left out; {len(seeds)} run(s) each, in turn.\n")
    print("| S | threads | trajectories/s, median (range) | cores | staleness | idle: engine / learner | test WER |")
    print("|--:|--:|--:|--:|--:|---|---|")
    for variant, runs in results.items():
        staleness, threads = variant.split(":")
        rates = [result.trajectories_per_second for result in runs]
        speed = f"{statistics.median(rates):.1f} ({min(rates):.1f}–{max(rates):.1f})"
        idle = " / ".join(f"{statistics.fmean(r.idle[part] for r in runs):.0%}" for part in PARTS)
        wer = ", ".join(f"{result.wer:.2%}" for result in runs if result.wer is not None) or "–"
        age = statistics.fmean(result.staleness for result in runs)
        cores = statistics.median(result.cores for result in runs)
        print(f"| {staleness} | {threads} | {speed} | {cores:.2f} | {age:.2f} | {idle} | {wer} |")
    print(f"\nPhases, s: median over steps and runs of {', '.join(PHASES)}.\n")
    for variant, runs in results.items():
        medians = (statistics.median(result.phases[phase] for result in runs) for phase in PHASES)
        print(f"- {variant}: {', '.join(f'{seconds:.3f}' for seconds in medians)}")


def run(args: argparse.Namespace, variant: str, seed: int, folder: Path) -> Result:
    staleness, threads = (int(part) for part in variant.split(":"))
    name = f"s{staleness}-t{threads}-{seed}"
    settings = training_settings(folder, name, seed, args.steps, staleness, threads)
    settings["evaluation.after"] = str(args.wer).lower()
    command, environment = training(args.config, settings)
    command += args.override
    metrics = folder / name / "metrics.jsonl"
    cores = busy_cores(command, environment, metrics, args.warm_up, args.steps)
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    lines = lines[args.warm_up :]
    after = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))["after"]
    used = ("staleness/mean", *(f"time/idle_fraction/{part}" for part in PARTS))
    columns = {key: [line[key] for line in lines] for key in used}
    return Result(
        trajectories_per_second=trajectories_per_second(lines),
        cores=cores,
        phases=phase_medians(lines),
        staleness=statistics.fmean(columns["staleness/mean"]),
        idle={part: statistics.fmean(columns[f"time/idle_fraction/{part}"]) for part in PARTS},
        wer=None if after is None else after["wer"],
    )


def training_settings(folder: Path, name: str, seed: int, steps: int, staleness: int, threads: int) -> dict[str, Any]:
    """Of a training that is timed and not evaluated."""
    return {
        "name": name,
        "runs_dir": folder,
        "seed": seed,
        "steps": steps,
        "staleness": staleness,
        "engines.threads": threads,
        "learner.threads": threads,
        "encoder.threads": threads,
        "learner.loss.importance_cap": 2,
        "evaluation.before": "false",
        "evaluation.after": "false",
        "checkpoint.every": steps,
    }


def training(config: str | Path, settings: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a training with this code."""
    command = [sys.executable, "-m", "cluster.cli", "train", str(config)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return command + [f"{key}={value}" for key, value in settings.items()], environment


def trajectories_per_second(lines: Sequence[Mapping[str, float]]) -> float:
    """Of some lines of `metrics.jsonl`."""
    return sum(line["rollout/trajectories"] for line in lines) / sum(line["time/step"] for line in lines)


def phase_medians(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of each phase, of the lines that have it: with overlap, a step of the learner need not see a phase of the
    engines end."""
    return {
        phase: statistics.median(line[f"time/{phase}"] for line in lines if f"time/{phase}" in line) for phase in PHASES
    }


def busy_cores(command: Sequence[str], environment: dict[str, str], metrics: Path, first: int, last: int) -> float:
    """Run a training; how many cores were busy between the ends of two of its steps.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    marks: list[tuple[float, float]] = []
    while process.poll() is None:
        done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if len(marks) < 2 and done >= (first, last)[len(marks)]:
            times = psutil.cpu_times()
            marks.append((time.monotonic(), times.user + times.nice + times.system + times.softirq))
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    (start, used_before), (end, used) = marks
    return (used - used_before) / (end - start)


if __name__ == "__main__":
    main()
