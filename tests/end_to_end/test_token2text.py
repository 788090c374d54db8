"""The reward model of DiffRO by the real command: trained, interrupted, resumed, exported, and used by a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from learner.token2text.model import Token2Text
from tests.end_to_end.runs import ROOT, records, run, without_times

pytestmark = pytest.mark.slow


def manifest(folder: Path, split: str, count: int) -> Path:
    source = ROOT / "assets" / "speech" / f"{split}.jsonl"
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["language"] == "en"][:count]
    path = folder / f"{split}.jsonl"
    out = [
        {
            "id": line["id"],
            "text": line["text"],
            "language": "en",
            "audio": str(source.parent / line["audio"]),
            "attributes": {"length": "long" if line["duration"] > 2 else "short"},
        }
        for line in lines
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in out), encoding="utf-8")
    return path


def write_run(folder: Path, name: str, **changes: Any) -> Path:
    config = {
        "name": name,
        "objective": "token2text",
        "runs_dir": str(folder / "runs"),
        "steps": 4,
        "model": {"path": "new", "codec": str(ROOT / "assets" / "tts_codec")},
        "data": {
            "train": str(manifest(folder, "train", 40)),
            "valid": str(manifest(folder, "valid", 6)),
            "test": str(manifest(folder, "test", 6)),
            "batch_prompts": 8,
        },
        "encoder": {"threads": 1},
        "token2text": {"hidden": 32, "layers": 1, "heads": 2, "attributes": ["length"]},
        "learner": {"threads": 1, "lr": 0.003},
        "evaluation": {"every": 2},
        "checkpoint": {"every": 2},
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_it_trains_resumes_and_exports(tmp_path: Path) -> None:
    whole = write_run(tmp_path, "whole")
    run("train", str(whole))
    folder = tmp_path / "runs" / "whole"
    metrics = records(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert metrics[-1]["learner/nll"] < metrics[0]["learner/nll"]
    assert {"valid/nll", "valid/cer", "valid/wer", "valid/attributes/length"} <= metrics[1].keys()
    state = json.loads((folder / "checkpoints" / "step-000002" / "state.json").read_text(encoding="utf-8"))
    assert state["score"] == metrics[1]["valid/cer"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "completed"
    assert summary["after"]["nll"] < summary["before"]["nll"] and 0 <= summary["after"]["attributes"]["length"] <= 1
    model = Token2Text.load(folder / "export")
    assert model.config.attributes == {"length": ("long", "short")}

    write_run(tmp_path, "parts")
    run("train", str(tmp_path / "parts.yaml"), "steps=2")
    assert "resuming from the checkpoint of step 2" in run("train", str(tmp_path / "parts.yaml"))
    again = records(tmp_path / "runs" / "parts" / "metrics.jsonl")
    # What the codec's cache held is gone with its process.
    for lines in (metrics, again):
        for line in lines:
            line.pop("rollout/encoded_utterances")
    assert without_times(again) == without_times(metrics)
    run("audit", str(folder))

    onwards = write_run(tmp_path, "onwards", model={"path": str(folder / "export"), "codec": "assets/tts_codec"})
    run("train", str(onwards), "steps=1", "evaluation.before=false")
    first = records(tmp_path / "runs" / "onwards" / "metrics.jsonl")[0]
    assert first["learner/nll"] < metrics[0]["learner/nll"]


def test_what_cannot_be_trained_on_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = write_run(tmp_path, "bad")
    valid = tmp_path / "valid.jsonl"
    lines = [json.loads(line) for line in valid.read_text(encoding="utf-8").splitlines()]
    lines[1]["attributes"]["length"] = "endless"
    valid.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    output = run("train", str(config), expect=2)
    assert "valid.jsonl:2: attributes.length" in output and "no class 'endless'; known: long, short" in output
    assert not (tmp_path / "runs").exists()
