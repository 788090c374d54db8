"""One real run per kind of fault: it ends, its account is exact, and its weights are those of the undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.chaos.audit import Outcome, disturbed
from tests.chaos.faults import Fault
from tests.demo_checkpoint import write_demo_checkpoint

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_checkpoint(tmp_path_factory.mktemp("model") / "tiny", scale=1.5)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = disturbed(tmp_path_factory.mktemp("undisturbed"), model, [])
    assert not outcome.problems, outcome.output
    assert outcome.total("fleet/restarts") == outcome.total("fleet/reissued") == 0
    return outcome


@pytest.mark.parametrize(
    ("fault", "restarts"),
    [
        (Fault("kill_engine", 2, "generate"), 1),
        (Fault("kill_engine_core", 3, "generate"), 1),
        (Fault("kill_engine", 4, "learn"), 1),
        (Fault("hang_engine", 2, "generate"), 1),
        (Fault("corrupt_publication", 3, "publish"), 1),
        (Fault("kill_encoder", 3, "encode"), 0),
        (Fault("kill_encoder", 3, "generate"), 0),
        (Fault("kill_reward", 2, "generate"), 0),
        (Fault("kill_rank", 4, "learn"), 0),
    ],
    ids=lambda value: f"{value.kind}-{value.phase}" if isinstance(value, Fault) else None,
)
def test_one_fault(undisturbed: Outcome, model: Path, tmp_path: Path, fault: Fault, restarts: int) -> None:
    outcome = disturbed(tmp_path, model, [fault])
    assert not outcome.problems, outcome.output
    assert outcome.total("fleet/restarts") >= restarts
    expected, found = undisturbed.weights, outcome.weights
    assert all(torch.equal(expected[name], found[name]) for name in expected), "bit-identical weights"


def test_all_engines_at_once(model: Path, tmp_path: Path) -> None:
    plan = [Fault("kill_all_engines", 3, "generate")]
    outcome = disturbed(tmp_path, model, plan, engines__count=2, engines__kv_cache_gb=0.05)
    assert not outcome.problems, outcome.output
    assert len(outcome.struck[0]["struck"]) >= 2 and outcome.total("fleet/restarts") == 2


def test_one_of_two_ranks(model: Path, tmp_path: Path) -> None:
    outcome = disturbed(tmp_path, model, [Fault("kill_rank", 4, "learn")], learner__ranks=2)
    assert not outcome.problems, outcome.output
