"""What a run's own records say about it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from cluster.runs.ledger import BAD_UTTERANCE, Ledger
from rollout.leftovers import VARIABLE, held_by
from speech.runtime.owned_folders import SHARED_MEMORY
from tests.end_to_end.runs import records

LOGPROB_GAP = 1e-2
"""Nats between learner and engine beyond which they hold different weights; in float32 the same ones differ by 1e-4."""
PROBE_GAP = 1e-4
KEPT = ("ray", "torchinductor_", "pymp-")
"""How the folders among the temporary files begin that stay after every run, disturbed or not: Ray's logs and sockets,
the cache of compiled kernels, which all runs of a user share, and the folder of a Ray dashboard's fork server, where
the head was killed. Those of engines are in their homes."""


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        struck: faults that hit something, as the injector noted them.
        executions: how often the command was run until the run was complete.
        problems: what the audit found; empty for a clean run.
    """

    folder: Path
    output: str
    struck: list[dict[str, Any]]
    executions: int = 1
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

    @property
    def wer(self) -> float:
        """Of the test split, decoded greedily with the final weights."""
        evaluation = json.loads((self.folder / "evaluation-after.json").read_text(encoding="utf-8"))
        return float(evaluation["summary"]["wer"])


@dataclass
class Surroundings:
    """What is outside a run's folder and must be after it as it was before.

    Attributes:
        temporary: the folder for temporary files of the run, and of nothing else.
    """

    temporary: Path
    _shared_memory: set[str] = field(default_factory=lambda: {file.name for file in SHARED_MEMORY.iterdir()})

    def engine_processes(self) -> list[psutil.Process]:
        """vLLM's processes of the run, whatever became of their parents."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                home = process.environ().get(VARIABLE)
                if home is not None and Path(home).is_relative_to(self.temporary):
                    found.append(process)
        return found

    def left_behind(self) -> list[str]:
        """Files that were not there before. What a living process holds in shared memory is somebody else's: the run's
        have ended."""
        files = [file for file in self.temporary.iterdir() if not file.name.startswith(KEPT)]
        new = [file for file in SHARED_MEMORY.iterdir() if file.name not in self._shared_memory]
        held = set().union(*(held_by(pid) for pid in psutil.pids()))
        for file in new:
            with suppress(FileNotFoundError):
                status = file.stat()
                if (status.st_dev, status.st_ino) not in held:
                    files.append(file)
        return [str(file) for file in files]


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Processes that are started within have their temporary files to themselves, in a folder near the root: the paths
    of Ray's sockets are long."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield Surroundings(Path(folder))
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before


def same_weights(one: Outcome, other: Outcome) -> bool:
    """Bit by bit."""
    mine, theirs = one.weights, other.weights
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def audit(outcome: Outcome, manifest: Path, steps: int, staleness: int = 0) -> list[str]:
    """Every prompt once or rejected with a reason, every step once, versions one by one, and every sample drawn by a
    version that was at most `staleness` behind the one that its step began with."""
    if not (outcome.folder / "metrics.jsonl").exists():
        return ["no step was recorded"]
    problems = []
    lines = outcome.metrics
    if [line["step"] for line in lines] != list(range(1, steps + 1)):
        problems.append(f"steps {[line['step'] for line in lines]}")
    if [line["version"] for line in lines] != list(range(1, len(lines) + 1)):
        problems.append(f"versions {[line['version'] for line in lines]}")
    # An older policy's samples differ from the learner's by what it has learned since; the probe never may.
    if staleness == 0 and any(line.get("logprob_gap/max", 0.0) > LOGPROB_GAP for line in lines):
        problems.append("samples of other weights than the learner's were trained")
    if any(line["publish/probe_gap"] > PROBE_GAP for line in lines):
        problems.append("an engine served other weights than the learner's")
    if any(line["staleness/max"] > staleness for line in lines if "staleness/max" in line):
        problems.append(f"staleness {[line.get('staleness/max') for line in lines]} with a bound of {staleness}")
    ledger = records(outcome.folder / "ledger.jsonl")
    for step in range(1, len(lines) + 1):
        rollouts = records(outcome.folder / "rollouts" / f"step-{step:06d}.jsonl")
        problems += _sampled(step, rollouts, staleness)
        problems += _accounted(step, rollouts, [entry for entry in ledger if entry["step"] == step])
    found = Ledger(outcome.folder / "ledger.jsonl").audit([line["id"] for line in records(manifest)])
    if not found.exact or not found.trained:
        problems.append(f"ledger: {found}")
    return problems


def _sampled(step: int, rollouts: Sequence[Mapping[str, Any]], staleness: int) -> list[str]:
    """A sample may begin under one version and end under a later one, but never leave the bound."""
    versions = {tuple(sample["versions"]) for line in rollouts for sample in line["samples"]}
    if all(step - 1 - staleness <= first <= last <= step - 1 for first, last in versions):
        return []
    return [f"step {step} was sampled by versions {sorted(versions)} with a bound of {staleness}"]


def _accounted(step: int, rollouts: Sequence[Mapping[str, Any]], ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a step sampled is what it trained or rejected, and besides only bad utterances are in its part of the
    ledger."""
    problems = []
    usable = [entry for entry in ledger if not (entry["reason"] or "").startswith(BAD_UTTERANCE)]
    if sorted(line["prompt"] for line in rollouts) != sorted(entry["prompt"] for entry in usable):
        problems.append(f"step {step}: the ledger does not name the prompts that were sampled")
    if any(entry["outcome"] == "rejected" and not entry["reason"] for entry in ledger):
        problems.append(f"step {step}: rejected without a reason")
    return problems
