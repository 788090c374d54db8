"""Faults under LoRA, whose adapter goes to the engines alone: bit-identical weights, as in full training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.audit import Outcome, same_weights
from tests.chaos.faults import RERUN, Fault
from tests.chaos.harness import disturbed
from tests.demo_checkpoint import write_demo_checkpoint

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

ADAPTERS: dict[str, Any] = {"learner__lora": {"rank": 4}, "engines__lora_rank": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_checkpoint(tmp_path_factory.mktemp("model") / "tiny", scale=1.5)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = disturbed(tmp_path_factory.mktemp("undisturbed"), model, [], **ADAPTERS)
    assert not outcome.problems, outcome.output
    assert outcome.total("fleet/restarts") == 0
    return outcome


@pytest.mark.parametrize(
    ("fault", "restarts"),
    [
        (Fault("kill_engine", 4, "learn"), 1),
        (Fault("kill_engine_core", 3, "generate"), 1),
        (Fault("corrupt_publication", 3, "publish"), 1),
        (Fault("kill_rank", 4, "learn"), 0),
        (Fault("kill_driver", 4, "checkpoint", 0.05), 0),
    ],
    ids=lambda value: f"{value.kind}-{value.phase}" if isinstance(value, Fault) else None,
)
def test_one_fault(undisturbed: Outcome, model: Path, tmp_path: Path, fault: Fault, restarts: int) -> None:
    outcome = disturbed(tmp_path, model, [fault], **ADAPTERS)
    assert not outcome.problems, outcome.output
    assert outcome.total("fleet/restarts") >= restarts
    assert outcome.executions == 1 + (fault.kind in RERUN)
    if fault.kind == "corrupt_publication":
        assert "lora_A" in str(outcome.struck[0]["struck"]) and "was refused" in outcome.output
    assert same_weights(undisturbed, outcome), "bit-identical weights"
