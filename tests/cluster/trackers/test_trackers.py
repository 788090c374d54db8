"""Trackers beside a run's folder: what they are given, and that none of them can hurt the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from cluster.config import RunConfig, load_config
from cluster.runs.folder import RunFolder
from cluster.trackers import trackers as fan_out
from cluster.trackers.trackers import IDS, numbers_of
from speech.errors import UserError
from tests.cluster.trackers import failing

KEPT = "tests.cluster.trackers.failing:Kept"


def config(*names: str) -> RunConfig:
    return load_config(None, ["name=demo", "model.path=m", "data.train=t.jsonl", f"trackers=[{', '.join(names)}]"])


def tracked(tmp_path: Path, *names: str, steps: int = 3) -> None:
    """What a run does to its folder."""
    settings = config(*names)
    with RunFolder(tmp_path, settings.name) as folder:
        folder.rewind(folder.open(settings))
        for step in range(1, steps + 1):
            folder.metrics(step, {"reward/mean": step / 10})
        folder.table("samples", ["a", "b"], [["x", 1.0]], steps)
        folder.audio("samples", np.zeros(160, np.float32), 16_000, steps)
        folder.summary({"status": "completed", "steps": steps, "after": {"wer": 0.25}})


def test_a_tracker_is_given_all_of_a_run_in_order_and_a_resumed_run_finds_itself(tmp_path: Path) -> None:
    failing.Kept.calls.clear()
    tracked(tmp_path, KEPT)
    (calls,) = failing.Kept.calls.values()
    assert calls[0] == ("begin", None, 0)
    assert [call[1:] for call in calls if call[0] == "metrics"] == [(s, {"reward/mean": s / 10}) for s in (1, 2, 3)]
    assert ("table", "samples", ("a", "b"), 1, 3) in calls and ("audio", "samples", (160,), 16_000, 3) in calls
    assert calls[-1] == ("close", {"steps": 3, "after.wer": 0.25})
    assert json.loads((tmp_path / "demo" / IDS).read_text()) == {KEPT: "first"}
    tracked(tmp_path, KEPT)
    assert [call[1] for call in calls if call[0] == "begin"] == [None, "first"]


def test_a_run_that_ended_by_an_error_says_so_to_its_trackers(tmp_path: Path) -> None:
    failing.Kept.calls.clear()
    settings = config(KEPT)
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path, settings.name) as folder:
        folder.open(settings)
        raise ZeroDivisionError
    assert failing.Kept.calls[settings.name][-1] == ("close", {})


@pytest.mark.parametrize(("name", "reason"), [("Refuses", "no server answers"), ("Breaks", "closed the connection")])
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
    name: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing.Kept.calls.clear()
    with caplog.at_level(logging.WARNING):
        tracked(tmp_path, f"tests.cluster.trackers.failing:{name}", KEPT)
    (warning,) = [record for record in caplog.records if "tracker" in record.message]
    assert name in warning.message and "goes on without it" in warning.message and reason in str(warning.exc_info)
    assert len((tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()) == 3
    assert ("close", {"steps": 3, "after.wer": 0.25}) in failing.Kept.calls["demo"]


def test_a_tracker_that_hangs_delays_neither_steps_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fan_out, "CLOSE_S", 0.2)
    monkeypatch.setattr(fan_out, "BACKLOG", 4)
    failing.RELEASE.clear()
    try:
        tracked(tmp_path, "tests.cluster.trackers.failing:Hangs", steps=9)
    finally:
        failing.RELEASE.set()
    assert len((tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()) == 9
    assert "4 calls behind" in caplog.text and "did not end" in caplog.text


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trackers\.0.*wandb"):
        config("wandbb")


def test_numbers_of_a_summary_are_found_at_every_depth() -> None:
    values = {"steps": 3, "status": "completed", "after": {"wer": 0.5, "languages": {"en": {"wer": 1.0}}}, "best": None}
    assert numbers_of(values) == {"steps": 3, "after.wer": 0.5, "after.languages.en.wer": 1.0}
