"""Hours of training under faults, in resumed pieces: does anything grow that should not?

    python -m benchmarks.soak --hours 6 --out soak              # two cores; staleness 1, a fault every three minutes
    python -m benchmarks.soak --hours 6 --out soak              # again: goes on with the next piece
    python -m benchmarks.soak --hours 1 --fault-every 0 --bad 0 --out calm     # undisturbed, to compare with
    python -m benchmarks.soak --hours 6 --out soak --compare calm              # the WER against it

One run folder; each piece is `speechrl train` with more `steps`, disturbed and audited as by benchmarks/chaos.py: the
ledger exact, nothing left in /dev/shm, among the temporary files, or in the table of processes. Every few seconds all
processes of the run are looked at (`samples.csv`): memory (PSS), open files; and /dev/shm and temporary files.

Processes come and go with the faults. So growth is fitted inside each process's life, after `WARM_UP_S`, and pooled
over all of a kind, weighted by what each tells of the slope; the error is that of the pooled slope, from how the single
ones scatter. Tables at the end, a plot (`soak.png`); the exit code says whether every piece was clean and nothing grew.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

from benchmarks.chaos import WER_TOLERANCE, settings_of
from cluster.monitoring.memory import proportional_bytes
from cluster.runs import durable
from speech.runtime.owned_folders import SHARED_MEMORY
from tests.chaos.audit import KEPT
from tests.chaos.faults import ONE_NODE, Fault, random_plan
from tests.chaos.harness import disturbed
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import ROOT, records

MARK = "SPEECHRL_SOAK"
"""Environment variable of every process of the run."""
WARM_UP_S = 600.0
"""Of the life of a process, or of a piece, that is no part of its slope: it loads, its caches fill, and its
allocator meets tensors of every size."""
GROWTH = 0.02
"""Share of its mean by which something may grow in an hour, if at all beyond its error."""
MACHINE = "(machine)"
FIELDS = ("time", "piece", "role", "pid", "age", "mb", "files")
KINDS = tuple(kind for kind in ONE_NODE if kind != "full_disk")
"""A full disk is a file system of its own, which the pieces would not share."""


@dataclasses.dataclass(frozen=True)
class Slope:
    """What something grows by in an hour, over all processes of a kind.

    Attributes:
        lives: processes that were long enough there to tell.
        error: standard error; NaN of one process.
    """

    lives: int
    mean: float
    per_hour: float
    error: float

    @property
    def grows(self) -> bool:
        """Beyond its error, and by more than `GROWTH`. One life alone does not tell."""
        return self.per_hour > 2 * self.error and self.per_hour > GROWTH * self.mean


def slope(lives: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Slope:
    """Pooled least-squares slope of (hours, values) of several lives, each with a level of its own."""
    weights, slopes, values = [], [], []
    for hours, level in lives:
        x, y = np.asarray(hours, float), np.asarray(level, float)
        spread = float(((x - x.mean()) ** 2).sum()) if len(x) > 4 else 0.0
        if spread > 0:
            weights.append(spread)
            slopes.append(float(((x - x.mean()) * (y - y.mean())).sum() / spread))
            values += list(y)
    if not slopes:
        return Slope(0, float("nan"), float("nan"), float("nan"))
    share = np.asarray(weights) / sum(weights)
    pooled = float(share @ np.asarray(slopes))
    effective = 1 / float(share @ share)
    scatter = float(share @ (np.asarray(slopes) - pooled) ** 2)
    error = float(np.sqrt(scatter / (effective - 1))) if effective > 1.01 else float("nan")
    return Slope(len(slopes), float(np.mean(values)), pooled, error)


def role(process: psutil.Process) -> str:
    """What a process is to the run."""
    command = " ".join(process.cmdline())
    if command.startswith(("ray::", "VLLM::")):
        return command.split(".")[0].split()[0]
    if "tests.chaos.driver" in command:
        return "driver"
    return f"ray: {process.name()}" if "ray" in command else "other"


@contextmanager
def sampled(file: Path, piece: int, every: float) -> Iterator[None]:
    """Look at all processes with this one's mark, and at what the run has in /dev/shm and temporary files."""
    stop, begun = threading.Event(), time.time()
    before = {entry.name for entry in SHARED_MEMORY.iterdir()}

    def look() -> None:
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            if new:
                writer.writerow(FIELDS)
            while not stop.wait(every):
                writer.writerows(rows(piece, time.time() - begun, before))
                out.flush()

    thread = threading.Thread(target=look, name="samples")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def rows(piece: int, seconds: float, before: set[str]) -> Iterator[tuple[Any, ...]]:
    """One look; see `FIELDS`. The machine's rows have the number of files in `files` and their size in `mb`, and the
    age of the piece."""
    now = time.time()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == os.environ[MARK]:
                age, size = now - process.create_time(), proportional_bytes(process)
                yield now, piece, role(process), process.pid, round(age), round(size / 2**20, 2), process.num_fds()
    shared = [entry for entry in SHARED_MEMORY.iterdir() if entry.name not in before]
    # The harness gives each piece a folder for temporary files, which this process's environment names meanwhile.
    looked_at = [("/dev/shm", shared)]
    if (root := os.environ.get("TMPDIR")) is not None:  # else it is gone with the piece
        found = [Path(folder, name) for folder, folders, names in os.walk(root) for name in names + folders]
        temporary = [file for file in found if not str(file.relative_to(root)).startswith(KEPT)]
        looked_at.append(("temporary files", temporary))
    for name, files in looked_at:
        size = 0
        for entry in files:
            with suppress(FileNotFoundError):
                size += entry.stat().st_blocks * 512
        yield now, piece, name, MACHINE, round(seconds), round(size / 2**20, 2), len(files)


def manifest(out: Path, bad: float) -> Path:
    """The training split, of which a share of utterances breaks off or is overwritten behind a sound header."""
    source = ROOT / "assets" / "speech" / "train.jsonl"
    lines = records(source)
    spoiled = list(range(0, len(lines), round(1 / bad))) if bad else []
    for number, line in enumerate(lines):
        audio = source.parent / line["audio"]
        if number in spoiled:
            wave, rate = soundfile.read(audio)
            audio = out / "bad" / f"{audio.stem}.flac"
            audio.parent.mkdir(exist_ok=True)
            soundfile.write(audio, wave, rate)
            content = audio.read_bytes()
            half = content[: len(content) // 2]
            audio.write_bytes(half if spoiled.index(number) % 2 else half + bytes(len(content) - len(half)))
        line["audio"] = str(audio)
    file = out / "manifest.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def plan_of(piece: int, first: int, steps: int, seconds: float, every: float, seed: int) -> list[Fault]:
    """Faults for steps `first + 1` to `first + steps`, so many that one comes every `every` seconds of `seconds`."""
    count = round(seconds / every) if every else 0
    faults = random_plan(count, steps - 2, seed + piece, KINDS)  # the last steps may have no rollout of their own
    return [dataclasses.replace(fault, step=fault.step + first) for fault in faults]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=6.0, help="of training in all; no piece begins after them (6)")
    parser.add_argument("--piece-steps", type=int, default=100, help="steps of one piece (100)")
    parser.add_argument("--fault-every", type=float, default=180.0, help="seconds; 0: never (180)")
    parser.add_argument("--bad", type=float, default=0.01, help="share of utterances that cannot be read (0.01)")
    parser.add_argument("--staleness", type=int, default=1, help="(1)")
    parser.add_argument("--engines", type=int, default=1, help="(1)")
    parser.add_argument("--sample-every", type=float, default=15.0, help="seconds (15)")
    parser.add_argument("--model", type=Path, help="checkpoint to train (a tiny random one, whose WER is always 1)")
    parser.add_argument("--compare", type=Path, help="folder of an undisturbed soak: the WERs where pieces end")
    parser.add_argument("--seed", type=int, default=0, help="of the plans (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder for everything (runs/soak)")
    arguments = parser.parse_args()

    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    model = arguments.model or out / "tiny"
    if not model.exists():
        write_demo_checkpoint(model, scale=1.5)
    os.environ[MARK] = f"{os.getpid()}-{time.time():.0f}"
    data = {"data__train": str(manifest(out, arguments.bad)), "data__on_bad": "skip"}
    pieces = out / "pieces.jsonl"
    while sum(line["seconds"] for line in durable.read(pieces)) < arguments.hours * 3600:
        done = durable.read(pieces)
        first = sum(line["steps"] for line in done)
        # The first piece shows how long a step is, undisturbed.
        seconds = done[-1]["seconds"] / done[-1]["steps"] * arguments.piece_steps if done else 0.0
        plan = plan_of(len(done), first, arguments.piece_steps, seconds, arguments.fault_every, arguments.seed)
        past = [Fault(**fault) for line in done for fault in line["plan"]]
        steps = argparse.Namespace(**vars(arguments) | {"steps": first + arguments.piece_steps})
        started = time.monotonic()
        with sampled(out / "samples.csv", len(done), arguments.sample_every):
            outcome = disturbed(out / "run", model, past + plan, 8 * 3600, **settings_of(steps) | data)
        line = {
            "piece": len(done),
            "steps": arguments.piece_steps,
            "seconds": round(time.monotonic() - started),
            "plan": [dataclasses.asdict(fault) for fault in plan],
            "executions": outcome.executions,
            "problems": outcome.problems,
            "wer": outcome.wer if (outcome.folder / "evaluation-after.json").exists() else None,
        }
        durable.append(pieces, [line])
        print(json.dumps(line), flush=True)
        if outcome.problems:
            break  # the same run cannot go on from a step that it did not reach
    return report(out, arguments.compare)


def report(out: Path, calm: Path | None) -> int:
    """Print the tables and draw the plot; 0 when every piece was clean and nothing grew."""
    done = durable.read(out / "pieces.jsonl")
    struck = records(out / "run" / "faults.jsonl")
    with (out / "samples.csv").open(encoding="utf-8") as file:
        samples = list(csv.DictReader(file))
    hours = sum(line["seconds"] for line in done) / 3600
    print(
        f"\n{hours:.1f} hours, {len(done)} pieces, {sum(line['steps'] for line in done)} steps, {len(struck)} faults\n"
    )
    print("| what | lives | mean MB | MB per hour | mean open files | files per hour |\n|---|--:|--:|--:|--:|--:|")
    problems = [f"piece {line['piece']}: {problem}" for line in done for problem in line["problems"]]
    for name in sorted({sample["role"] for sample in samples}):
        cells = []
        for column in ("mb", "files"):
            found = slope(lives_of(samples, name, column))
            cells.append(f"{found.mean:.1f} | {found.per_hour:+.2f} ± {found.error:.2f}")
            if found.grows:
                problems.append(f"{name}: {column} grows by {found.per_hour:.2f} an hour")
        print(f"| {name} | {found.lives} | {cells[0]} | {cells[1]} |")
    if calm is not None:
        disturbed_wer, calm_wer = wer_by_step(done), wer_by_step(durable.read(calm / "pieces.jsonl"))
        if not (common := disturbed_wer.keys() & calm_wer.keys()):
            problems.append(f"{calm}: no piece ends at a step at which one of this run's ends")
        for step in sorted(common):
            print(f"\nWER after {step} steps: {disturbed_wer[step]:.2%}, undisturbed {calm_wer[step]:.2%}")
        if common and abs(disturbed_wer[max(common)] - calm_wer[max(common)]) > WER_TOLERANCE:
            problems.append("the WER is not the undisturbed run's")
    print("\n" + ("\n".join(problems) or "clean, and nothing grows"))
    draw(out / "soak.png", samples, [entry["time"] for entry in struck])
    return 1 if problems else 0


def wer_by_step(pieces: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Of the test split, by the number of steps at the end of each piece that was evaluated."""
    ends = itertools.accumulate(line["steps"] for line in pieces)
    return {end: line["wer"] for end, line in zip(ends, pieces, strict=True) if line["wer"] is not None}


def lives_of(samples: Sequence[dict[str, str]], name: str, column: str) -> list[tuple[list[float], list[float]]]:
    """(hours, values) of each process of a role once it is warm."""
    lives: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for sample in samples:
        if sample["role"] == name and float(sample["age"]) >= WARM_UP_S:
            key = sample["piece"], sample["pid"]
            lives[key][0].append(float(sample["time"]) / 3600)
            lives[key][1].append(float(sample[column]))
    return list(lives.values())


def draw(file: Path, samples: Sequence[dict[str, str]], faults: Sequence[float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    start = min(float(sample["time"]) for sample in samples)
    figure, axes = plt.subplots(2, 2, figsize=(14, 8), sharex=True, layout="constrained")
    for axis, column, machine, title in (
        (axes[0, 0], "mb", False, "memory of each process (PSS, MB)"),
        (axes[0, 1], "files", False, "open files of each process"),
        (axes[1, 0], "mb", True, "in use (MB)"),
        (axes[1, 1], "files", True, "files"),
    ):
        shown = [sample for sample in samples if (sample["pid"] == MACHINE) == machine]
        for name in sorted({sample["role"] for sample in shown}):
            own = [sample for sample in shown if sample["role"] == name]
            hours = [(float(sample["time"]) - start) / 3600 for sample in own]
            axis.plot(hours, [float(sample[column]) for sample in own], ".", markersize=2, label=name)
        for fault in faults:
            axis.axvline((fault - start) / 3600, color="0.8", linewidth=0.5, zorder=0)
        axis.set_title(title)
        axis.legend(fontsize=6, markerscale=4)
    for axis in axes[1]:
        axis.set_xlabel("hours; grey lines: faults")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
