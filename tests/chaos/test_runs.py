"""One real run per kind of fault: it ends, its account is exact, and its weights are those of the undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.audit import Outcome, same_weights
from tests.chaos.faults import PHASES, RERUN, Fault
from tests.chaos.harness import disturbed
from tests.chaos.recovery import recovery
from tests.demo_checkpoint import write_demo_checkpoint
from tests.small_disk import CannotMountError

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
        (Fault("hang_reward", 2, "generate"), 0),
        (Fault("kill_rank", 4, "learn"), 0),
        (Fault("kill_driver", 3, "generate"), 0),
        (Fault("kill_driver", 4, "checkpoint", 0.05), 0),
        (Fault("full_disk", 4, "checkpoint"), 0),
        (Fault("full_disk", 3, "learn"), 0),
    ],
    ids=lambda value: f"{value.kind}-{value.phase}" if isinstance(value, Fault) else None,
)
def test_one_fault(undisturbed: Outcome, model: Path, tmp_path: Path, fault: Fault, restarts: int) -> None:
    try:
        outcome = disturbed(tmp_path, model, [fault])
    except CannotMountError as error:
        pytest.skip(str(error))
    assert not outcome.problems, outcome.output
    assert outcome.total("fleet/restarts") >= restarts
    assert outcome.executions == 1 + (fault.kind in RERUN)
    if fault.kind == "hang_reward":
        assert outcome.metrics[-1]["reward/retried_total"] >= 1, "its group was scored again"
    if fault.kind == "full_disk":
        assert "no space left" in outcome.output
    assert same_weights(undisturbed, outcome), "bit-identical weights"


def test_all_engines_at_once(model: Path, tmp_path: Path) -> None:
    plan = [Fault("kill_all_engines", 3, "generate")]
    outcome = disturbed(tmp_path, model, plan, engines__count=2, engines__kv_cache_gb=0.05)
    assert not outcome.problems, outcome.output
    assert len(outcome.struck[0]["struck"]) >= 2
    assert outcome.total("fleet/restarts") == 2, "one start-up of each engine brought everything back"
    assert outcome.total("fleet/reissued") >= 4, "what they had was given out again"
    measured = recovery(outcome.folder, outcome.struck[0])
    assert measured is not None and 0 < measured.start < measured.samples, "the log and the timeline tell"


@pytest.mark.parametrize("phase", PHASES["kill_raylet"])
def test_a_node_and_all_that_runs_on_it(undisturbed: Outcome, model: Path, tmp_path: Path, phase: str) -> None:
    outcome = disturbed(tmp_path, model, [Fault("kill_raylet", 3, phase)], nodes=2)
    assert not outcome.problems, outcome.output
    assert same_weights(undisturbed, outcome), "bit-identical weights"


def test_one_of_two_ranks(model: Path, tmp_path: Path) -> None:
    outcome = disturbed(tmp_path, model, [Fault("kill_rank", 4, "learn")], learner__ranks=2)
    assert not outcome.problems, outcome.output
