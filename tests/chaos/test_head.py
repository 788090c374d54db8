"""The head node dies: the run on it ends, says so, leaves nothing behind, and resumes on another head."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.chaos.audit import Outcome, audit, same_weights
from tests.chaos.harness import SETTINGS, disturbed
from tests.chaos.injector import ACTORS
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.ray_head import Head, of_session, ray_head
from tests.end_to_end.runs import ROOT, records, training, wait_for_steps, write_config

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

STEPS = 8
BOUND_S = 240.0
"""Until the command has ended. Ray's clients give a lost head 60 s to come back."""


def kill(head: Head, *names: str) -> list[psutil.Process]:
    """Kill processes of a head by their names; returns what else there was of the run on it."""
    processes = of_session(head.session)
    actors = [p for p in processes if any(name in " ".join(p.cmdline()) for name in (*ACTORS.values(), "VLLM"))]
    doomed = [p for p in processes if p.name() in names]
    assert len(doomed) == len(names) and len(actors) >= 4, [p.name() for p in processes]
    for process in doomed:
        process.kill()
    return actors


@pytest.mark.parametrize("names", [("gcs_server",), ("gcs_server", "raylet")], ids=["gcs", "node"])
def test_the_head_dies(names: tuple[str, ...], tmp_path: Path) -> None:
    model = write_demo_checkpoint(tmp_path / "tiny", scale=1.5)
    reference = disturbed(tmp_path / "undisturbed", model, [], steps=STEPS)
    assert not reference.problems, reference.output
    folder, output = tmp_path / "runs" / "tiny", tmp_path / "output.txt"

    def config(head: Head) -> Path:
        return write_config(tmp_path, model, steps=STEPS, ray={"address": head.gcs}, **SETTINGS)

    with ray_head(None, 5, {"PYTHONPATH": str(ROOT)}) as head:
        with training(config(head), head.environment) as process:
            wait_for_steps(process, folder / "metrics.jsonl", 3)
            actors = kill(head, *names)
            code = process.wait(BOUND_S)
        text = output.read_text(encoding="utf-8")
        assert code == 1 and "Failed to connect to GCS" in text, text
        logged = [line["message"] for line in records(folder / "log.jsonl") if line["level"] == "ERROR"]
        assert any("start a head and run the same command again" in message for message in logged)
        _, left = psutil.wait_procs(actors, timeout=120)
        assert not left, "engines outlive their head"
    with ray_head(None, 5, {"PYTHONPATH": str(ROOT)}) as head, training(config(head), head.environment) as process:
        assert process.wait(600) == 0, output.read_text(encoding="utf-8")
    outcome = Outcome(folder, output.read_text(encoding="utf-8"), [])
    assert "resuming from the checkpoint of step" in outcome.output
    assert not audit(outcome, tmp_path / "train.jsonl", STEPS), outcome.output
    assert same_weights(outcome, reference)
