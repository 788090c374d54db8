"""The runs behind `paper_table.py`, and what is kept of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from cluster.config import load_config

RUNS = Path("runs/paper")
SINGLE_THREADED = ("engines.threads=1", "learner.threads=1", "encoder.threads=1", "rewards.sound.threads=1")

Figures = dict[str, Any]
"""What a table or a plot needs of one run."""


@dataclass(frozen=True)
class Row:
    """A variant: its label, a name for its runs, and what it changes in the configuration."""

    label: str
    name: str
    overrides: tuple[str, ...] = ()


class Runner:
    """Runs what is not kept yet, `jobs` at a time.

    The figures of each completed run are kept in a small file of its own, so that a table can grow over days and
    machines, and be drawn again without the runs' folders.

    Args:
        jobs: runs at the same time; with more than one, each has single threads.
        report_only: run nothing.
        kept: folder of the files.
    """

    def __init__(self, jobs: int, report_only: bool, kept: Path) -> None:
        self.jobs, self.report_only, self.kept = jobs, report_only, kept
        RUNS.mkdir(parents=True, exist_ok=True)
        kept.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        table: str,
        config: str,
        rows: Sequence[Row],
        seeds: Sequence[int],
        more: Sequence[str],
        read: Callable[[Path], Figures],
    ) -> dict[Row, list[Figures]]:
        """Figures of the completed runs of each row, seed by seed.

        Args:
            table: begins the names of the runs.
            more: overrides of every row.
            read: a completed run's folder to its figures.

        Raises:
            SystemExit: a run has failed or was interrupted (no other is begun then), or figures are kept of a run
                with other settings, as a folder may be.
        """
        # Seed by seed, so that an interrupted table has whole columns.
        plans = [
            Plan(row, f"{table}-{row.name}-seed{seed}", config, seed, tuple(more)) for seed in seeds for row in rows
        ]
        stopped = Event()

        def complete(plan: Plan) -> Figures | None:
            if stopped.is_set():
                return None
            try:
                return self._complete(plan, read)
            except BaseException:
                stopped.set()  # here: before anybody else hears of it, this thread would begin the next run
                raise

        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                found = list(pool.map(complete, plans))
            finally:
                stopped.set()
        figures: dict[Row, list[Figures]] = {row: [] for row in rows}
        for plan, of_run in zip(plans, found, strict=True):
            if of_run is not None:
                figures[plan.row].append(of_run)
        return figures

    def _complete(self, plan: Plan, read: Callable[[Path], Figures]) -> Figures | None:
        file, folder = self.kept / f"{plan.name}.json", RUNS / plan.name
        if not file.is_file():
            if not completed(folder):
                if self.report_only:
                    return None
                self._train(plan, folder)
            # What is kept says which settings it is of; the folder may be of an earlier call with others.
            planned = load_config(plan.config, [*plan.overrides, *SINGLE_THREADED])
            if load_config(folder / "config.yaml", SINGLE_THREADED) != planned:
                raise SystemExit(f"{folder} is of a run with other settings: remove it")
            summary = load(folder / "summary.json")
            content = {
                "config": plan.config,
                "settings": plan.settings,
                "steps": summary["steps"],
                "seconds": round(summary["seconds"], 1),
                "figures": read(folder),
            }
            file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        content = load(file)
        if (content["config"], content["settings"]) != (plan.config, plan.settings):
            raise SystemExit(f"{file} is of a run with other settings: remove it, or choose another folder with --kept")
        figures: Figures = content["figures"]
        return figures

    def _train(self, plan: Plan, folder: Path) -> None:
        sys.stderr.write(f"{plan.row.label}, seed {plan.seed}\n")  # one call: the line of another thread waits
        sys.stderr.flush()
        command = [sys.executable, "-m", "cluster.cli", "train", plan.config, *plan.overrides]
        command += SINGLE_THREADED if self.jobs > 1 else ()
        said = RUNS / f"{plan.name}.txt"
        with said.open("w", encoding="utf-8") as output:
            code = subprocess.run(command, check=False, stdout=output, stderr=subprocess.STDOUT).returncode
        if code or not completed(folder):
            raise SystemExit(f"{plan.row.label}, seed {plan.seed}: no completed run (exit code {code}), see {said}")


@dataclass(frozen=True)
class Plan:
    """One run."""

    row: Row
    name: str
    config: str
    seed: int
    more: tuple[str, ...]

    @property
    def settings(self) -> list[str]:
        """Overrides that the result depends on."""
        return [f"seed={self.seed}", *self.more, *self.row.overrides]

    @property
    def overrides(self) -> list[str]:
        """All overrides but the threads."""
        return [f"name={self.name}", f"runs_dir={RUNS}", *self.settings]


def completed(folder: Path) -> bool:
    """Whether a run has come to its end."""
    file = folder / "summary.json"
    return file.is_file() and load(file)["status"] == "completed"


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
