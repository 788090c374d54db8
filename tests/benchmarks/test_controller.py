"""The benchmark of the controller runs the real driver, and so must follow it (benchmarks/controller.py)."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.controller import run_controller


def test_the_driver_runs_on_simulated_actors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark itself compares ledger and summary with what was ordered."""
    settings = {"engines": 3, "steps": 2, "prompts": 6, "group_size": 2, "ranks": 2, "staleness": 1}
    run_controller(argparse.Namespace(**settings), tmp_path)
    assert "24 trajectories" in capsys.readouterr().out
