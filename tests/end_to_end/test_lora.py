"""`speechrl train` with LoRA, for real: engines get the adapter alone, or the merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import records, run, without_times, write_config

pytestmark = pytest.mark.slow

RANK = 4


def train(folder: Path, model: Path, lora_rank: int, steps: int = 4, **overrides: object) -> Path:
    """The run's folder, after `steps`."""
    folder.mkdir(exist_ok=True)
    settings = {"learner__lora": {"rank": RANK}, "engines__lora_rank": lora_rank, "steps": steps, **overrides}
    run("train", str(write_config(folder, model, **settings)))
    return folder / "runs" / "tiny"


def test_an_adapter_alone_trains_as_merged_weights_do_and_resumes_to_the_bit(tmp_path: Path) -> None:
    model = write_demo_checkpoint(tmp_path / "model", tied=False, scale=1.5)
    alone, merged = (train(tmp_path / name, model, rank) for name, rank in (("alone", RANK), ("merged", 0)))
    lines = records(alone / "metrics.jsonl")
    assert len(lines) == 4
    for line, other in zip(lines, records(merged / "metrics.jsonl"), strict=True):
        assert line["publish/probe_gap"] <= 1e-5 and line["logprob_gap/mean"] <= 1e-4
        assert line["reward/mean"] == pytest.approx(other["reward/mean"], abs=0.3)
    assert lines[0]["reward/mean"] == records(merged / "metrics.jsonl")[0]["reward/mean"]
    exported = load_file(alone / "export" / "model.safetensors")
    before = load_file(model / "model.safetensors")
    moved = [name for name, tensor in exported.items() if not torch.equal(tensor, before[name])]
    assert moved and all(name.endswith("proj.weight") for name in moved)
    config = json.loads((alone / "export" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == RANK

    # Stopped after two steps; a fresh engine has the base until the adapter comes.
    resumed = train(tmp_path / "resumed", model, RANK, steps=2)
    assert train(tmp_path / "resumed", model, RANK) == resumed
    assert without_times(records(resumed / "metrics.jsonl")) == without_times(lines)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (resumed / "export" / file).read_bytes() == (alone / "export" / file).read_bytes(), file
