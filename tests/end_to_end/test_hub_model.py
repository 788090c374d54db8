"""`speechrl train` with a model named as on the hub: encoder, engine and learner each find it in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import run, write_config
from tests.speech.runtime.test_hub import NAME, cached


@pytest.mark.slow
def test_a_run_from_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path / "hub", write_demo_checkpoint(tmp_path / "model", tied=False, scale=1.5))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    run("train", str(write_config(tmp_path, Path(NAME), steps=2)))
    folder = tmp_path / "runs" / "tiny"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "completed" and summary["steps"] == 2
    assert not any(file.is_symlink() for file in (folder / "export").iterdir()), "an export stands on its own"
