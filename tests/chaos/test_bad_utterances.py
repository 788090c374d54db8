"""Real runs over data with bad utterances of every kind, and with kills: exact, and as if those were not there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.runs.ledger import BAD_UTTERANCE
from tests.chaos.audit import Outcome, same_weights
from tests.chaos.bad_utterances import KINDS, spoil
from tests.chaos.faults import Fault
from tests.chaos.harness import disturbed
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import manifest, records

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]

SETTINGS: dict[str, Any] = {
    "data__on_bad": "skip",
    # Every utterance is a batch of its own: which others stand beside it in a batch changes the last bits.
    "encoder__batch_seconds": 1.0,
}
GOOD = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_checkpoint(tmp_path_factory.mktemp("model") / "tiny", scale=1.5)


def trained(outcome: Outcome) -> list[list[str]]:
    """Prompts that each step trained."""
    steps: dict[int, list[str]] = {}
    for entry in records(outcome.folder / "ledger.jsonl"):
        steps.setdefault(entry["step"], [])
        if entry["outcome"] == "trained":
            steps[entry["step"]].append(entry["prompt"])
    return [steps[step] for step in sorted(steps)]


def rejected(outcome: Outcome) -> dict[str, str]:
    """Reasons by utterance."""
    entries = records(outcome.folder / "ledger.jsonl")
    found = [entry for entry in entries if (entry["reason"] or "").startswith(BAD_UTTERANCE)]
    return {entry["prompt"].split("/", 1)[1]: entry["reason"] for entry in found}


def clean(train: Path) -> None:
    manifest(train.parent, GOOD)


def dirty(train: Path, vanishing: Path | None = None) -> None:
    clean(train)
    spoil(train, seed=5, vanishing=vanishing)


def test_weights_are_those_of_the_cleaned_data_whatever_is_killed(model: Path, tmp_path: Path) -> None:
    reference = disturbed(tmp_path / "clean", model, [], prepare=clean, **SETTINGS)
    assert not reference.problems, reference.output
    plan = [Fault("kill_encoder", 2, "encode"), Fault("kill_driver", 4, "generate"), Fault("kill_engine", 5, "learn")]
    outcome = disturbed(tmp_path / "bad", model, plan, prepare=dirty, **SETTINGS)
    assert not outcome.problems, outcome.output
    found = rejected(outcome)
    assert set(found) == {f"bad-{kind}" for kind in KINDS}, "each of them, and no other"
    assert "breaks off" in found["bad-cut"] or "cannot be decoded" in found["bad-cut"]
    assert "not finite" in found["bad-not-finite"] and "is silent" in found["bad-silent"]
    assert "engines.max_model_len" in found["bad-too-long"] and "samples reach" in found["bad-unscaled"]
    assert outcome.total("data/rejected") == sum(
        (entry["reason"] or "").startswith(BAD_UTTERANCE) for entry in records(outcome.folder / "ledger.jsonl")
    )
    summary = json.loads((outcome.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["rejected"]["count"] == outcome.total("data/rejected")
    assert trained(outcome) == trained(reference), "the same prompts in the same batches"
    assert same_weights(reference, outcome), "bit-identical weights"


def test_batches_in_flight_have_the_prompts_of_the_cleaned_data(model: Path, tmp_path: Path) -> None:
    """A recording vanishes while the run goes on, and engines are lost while later batches are sampled."""
    settings = SETTINGS | {"staleness": 1, "learner__zero_variance": "keep"}
    reference = disturbed(tmp_path / "clean", model, [], prepare=clean, **settings)
    assert not reference.problems, reference.output
    plan = [Fault("remove_audio", 2, "learn"), Fault("kill_engine", 3, "generate")]
    vanishing = tmp_path / "bad" / "vanishing"
    outcome = disturbed(tmp_path / "bad", model, plan, prepare=partial(dirty, vanishing=vanishing), **settings)
    assert not outcome.problems, outcome.output
    found = rejected(outcome)
    gone = {name for name in found if name.startswith("bad-gone")}
    assert set(found) - gone == {f"bad-{kind}" for kind in KINDS} and len(gone) == 1
    assert "no such file" in found[gone.pop()]
    assert trained(outcome) == trained(reference)
