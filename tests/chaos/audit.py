"""A disturbed run, and what its own records say about it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cluster.data import Ledger
from tests.chaos.faults import Fault
from tests.end_to_end.runs import ROOT, records, write_config

SETTINGS: dict[str, Any] = {
    # Seconds rather than minutes, but enough for two busy cores.
    "engines__heartbeat_s": 1.0,
    "engines__heartbeat_timeout_s": 30.0,
    "engines__startup_timeout_s": 240.0,
    "evaluation": {"before": False, "after": False},
}


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        struck: faults that hit something, as the injector noted them.
        problems: what the audit found; empty for a clean run.
    """

    folder: Path
    output: str
    struck: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return records(self.folder / "metrics.jsonl")

    def total(self, name: str) -> float:
        return sum(line[name] for line in self.metrics)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = load_file(self.folder / "export" / "model.safetensors")
        return weights


def disturbed(folder: Path, model: Path, plan: Sequence[Fault], timeout: float = 900, **settings: Any) -> Outcome:
    """Run the tiny training under a plan of faults, and audit it."""
    folder.mkdir(parents=True, exist_ok=True)
    section = SETTINGS | settings
    evaluation = section.pop("evaluation")
    config = write_config(folder, model, evaluation=evaluation, **section)
    (folder / "plan.json").write_text(json.dumps([dataclasses.asdict(fault) for fault in plan]), encoding="utf-8")
    log = folder / "faults.jsonl"
    log.touch()
    command = [sys.executable, "-m", "tests.chaos.driver", str(config), str(folder / "plan.json"), str(log)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    text = (folder / "output.txt").read_text(encoding="utf-8")
    steps = json.loads(config.read_text(encoding="utf-8"))["steps"]
    outcome = Outcome(folder / "runs" / "tiny", text, records(log))
    outcome.problems += audit(outcome, folder / "train.jsonl", steps)
    if code != 0:
        outcome.problems.append("it did not end in time" if code is None else f"exit code {code}")
    missed = len(plan) - len(outcome.struck)
    if missed or not all(entry["struck"] for entry in outcome.struck):
        outcome.problems.append("a fault hit nothing")
    return outcome


def audit(outcome: Outcome, manifest: Path, steps: int) -> list[str]:
    """Every prompt once, every step once, versions one by one, every sample drawn by the version before its step's."""
    problems = []
    if not (outcome.folder / "metrics.jsonl").exists():
        return ["no step was recorded"]
    lines = outcome.metrics
    if [line["step"] for line in lines] != list(range(1, steps + 1)):
        problems.append(f"steps {[line['step'] for line in lines]}")
    if [line["version"] for line in lines] != list(range(1, len(lines) + 1)):
        problems.append(f"versions {[line['version'] for line in lines]}")
    if any(line["logprob_gap/max"] > 1e-2 for line in lines if "logprob_gap/max" in line):
        problems.append("samples of other weights than the learner's were trained")
    found = Ledger(outcome.folder / "ledger.jsonl").audit([line["id"] for line in records(manifest)])
    if not found.exact or not found.trained:
        problems.append(f"ledger: {found}")
    for step in range(1, len(lines) + 1):
        rollouts = records(outcome.folder / "rollouts" / f"step-{step:06d}.jsonl")
        versions = {version for line in rollouts for sample in line["samples"] for version in sample["versions"]}
        if versions != {step - 1}:
            problems.append(f"step {step} was sampled by versions {sorted(versions)}")
    return problems
