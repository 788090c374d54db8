"""Sampling beside learning, for real: killed or stopped with batches in flight, resumed, and held against the data."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cluster.runs.ledger import Ledger
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import records, run, start, wait_for_steps, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_checkpoint(tmp_path_factory.mktemp("model") / "tiny", scale=1.5)


def state(folder: Path, step: int) -> dict[str, Any]:
    file = folder / "checkpoints" / f"step-{step:06d}" / "state.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def check(folder: Path, data: Path, staleness: int, steps: int) -> None:
    """What must hold of every finished run."""
    metrics = records(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, steps + 1))
    assert [line["version"] for line in metrics] == list(range(1, steps + 1))
    for line in metrics:
        assert line["staleness/max"] <= staleness
        assert line["publish/probe_gap"] <= line["publish/probe_tolerance"]
        assert line.get("learner/importance_ess", 1.0) > 0.5
    assert max(line["staleness/max"] for line in metrics) == staleness, "the bound is used"
    for step in range(1, steps + 1):
        for group in records(folder / "rollouts" / f"step-{step:06d}.jsonl"):
            for sample in group["samples"]:
                first, last = sample["versions"]
                assert step - 1 - staleness <= first <= last <= step - 1
    audit = Ledger(folder / "ledger.jsonl").audit([line["id"] for line in records(data)])
    assert audit.exact and audit.complete_epochs >= 2 and audit.trained > 0
    assert state(folder, steps)["in_flight"] == []


def test_killed_with_a_window_in_flight_loses_and_repeats_nothing(model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, model, staleness=1)
    folder = tmp_path / "runs" / "tiny"
    process = start("train", str(config))
    wait_for_steps(process, folder / "metrics.jsonl", 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = state(folder, 2)
    assert [len(rollout_batch) for rollout_batch in saved["in_flight"]] == [4]
    dealt = [tuple(place) for rollout_batch in saved["in_flight"] for place in rollout_batch]
    assert len(set(dealt)) == 4
    assert max(dealt) < (saved["source"]["epoch"], saved["source"]["position"])
    run("train", str(config))
    check(folder, tmp_path / "train.jsonl", staleness=1, steps=6)


def test_in_flight_updates_and_a_stop_with_two_windows_in_flight(model: Path, tmp_path: Path) -> None:
    overrides = {"staleness": 2, "update": "inflight", "sampling__max_new_tokens": 40, "checkpoint__every": 100}
    config = write_config(tmp_path, model, steps=8, **overrides)
    folder = tmp_path / "runs" / "tiny"
    process = start("train", str(config))
    wait_for_steps(process, folder / "metrics.jsonl", 3)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    done = len(records(folder / "metrics.jsonl"))
    assert done < 6 and [len(rollout_batch) for rollout_batch in state(folder, done)["in_flight"]] == [4, 4]
    assert "exactly once" in run("audit", str(folder))
    run("train", str(config))
    check(folder, tmp_path / "train.jsonl", staleness=2, steps=8)
