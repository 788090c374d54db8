"""`speechrl train` for real: Ray, vLLM, FSDP2, real audio; killed, resumed, interrupted, compared."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.runs.ledger import Ledger
from speech.runtime.owned_folders import SHARED_MEMORY
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import ROOT, records, run, start, wait_for_steps, without_times, write_config

SHARP_MODEL = ROOT / "assets" / "asr_demo"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied: the session's engine (tests/rollout/conftest.py) holds a tied model."""
    return write_demo_checkpoint(tmp_path_factory.mktemp("model") / "tiny", tied=False, scale=1.5)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    output = run("train", str(write_config(folder, model)))
    assert "WER" in output and "results in" in output
    return folder / "runs" / "tiny"


def test_run_folder_is_complete(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "completed" and summary["steps"] == 6 and summary["version"] == 6
    for when in ("before", "after"):
        assert {"wer", "cer", "sub", "del", "ins", "words", "utterances"} <= summary[when].keys()
        assert summary[when]["utterances"] == 4
    assert summary["trajectories"] >= 6 * 4 * 3 and summary["tokens"] > 0 and summary["audio_seconds"] > 0
    assert 0 < summary["peak_memory_gb"] < 24 and 0 <= summary["idle_fraction"] <= 1
    assert list((undisturbed / "tensorboard").iterdir())
    rollouts = records(undisturbed / "rollouts" / "step-000001.jsonl")
    sample = rollouts[0]["samples"][0]
    assert Path(rollouts[0]["audio"]).is_file() and rollouts[0]["reference"]
    assert {"text", "reward", "parts", "versions", "finish_reason", "logprob_gap"} <= sample.keys()
    trained = [s["logprob_gap"] for line in rollouts for s in line["samples"] if s["logprob_gap"] is not None]
    assert trained and max(trained) <= 1e-2


@pytest.mark.family_check("engine", "demo")
def test_engine_and_learner_agree_at_every_step(undisturbed: Path) -> None:
    for line in records(undisturbed / "metrics.jsonl"):
        assert line["logprob_gap/mean"] <= 1e-4 and line["logprob_gap/max"] <= 1e-2, line["step"]
        assert line["publish/probe_gap"] <= 1e-5 < line["publish/probe_tolerance"] <= 1e-3
        assert line["learner/grad_norm"] > 0


@pytest.mark.slow
def test_engines_in_half_precision_get_weights_that_they_can_prove(tmp_path: Path) -> None:
    run("train", str(write_config(tmp_path, SHARP_MODEL, engines__dtype="bfloat16", engines__max_model_len=256)))
    lines = records(tmp_path / "runs" / "tiny" / "metrics.jsonl")
    assert len(lines) == 6
    for line in lines:
        assert 0.5 < 2.0 * line["publish/probe_gap"] / line["publish/probe_tolerance"] < 1.5
        assert 1e-3 < line["publish/probe_gap"] < 0.3


def test_encoder_runs_once_per_utterance_and_group_pays_once_for_its_prompt(undisturbed: Path) -> None:
    for line in records(undisturbed / "metrics.jsonl"):
        sampled = line["rollout/trajectories"] / 3
        assert line["rollout/encoded_utterances"] == sampled + 2  # two replayed ones
        assert line["rollout/prefix_hit_rate"] > 0.2


def test_weights_moved_and_export_loads_in_plain_transformers(undisturbed: Path, model: Path) -> None:
    from transformers import AutoModel

    before, after = load_file(model / "model.safetensors"), load_file(undisturbed / "export" / "model.safetensors")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"language_model"}, "encoder and adaptor are frozen"
    loaded = AutoModel.from_pretrained(undisturbed / "export", trust_remote_code=True)
    for name, tensor in loaded.state_dict().items():
        if name in after:
            assert torch.equal(tensor, after[name]), name


def test_evaluate_gives_what_training_reported(undisturbed: Path, tmp_path: Path) -> None:
    manifest = undisturbed.parents[1] / "test.jsonl"
    out = tmp_path / "hypotheses.jsonl"
    limits = ("engines.max_model_len=160", "engines.threads=1", "sampling.max_new_tokens=10", "encoder.threads=1")
    limits += ("sampling.min_new_tokens=1",)
    arguments = ("--model", str(undisturbed / "export"), "--manifest", str(manifest), "--out", str(out))
    printed = run("evaluate", *arguments, *limits)
    reported = json.loads((undisturbed / "evaluation-after.json").read_text(encoding="utf-8"))
    assert [line["hypothesis"] for line in records(out)] == [line["hypothesis"] for line in reported["hypotheses"]]
    assert f"{reported['summary']['wer']:.2%}" in printed
    scores = json.loads(out.with_suffix(".summary.json").read_text(encoding="utf-8"))
    assert reported["summary"].items() <= scores.items(), "figures without a clock are the same"
    assert scores["time"]["rtf"] > 0 and "real-time factor" in printed and reported["time"]["rtf"] > 0
    compared = json.loads(run("compare", str(undisturbed), str(out), "--json", "--fail-if-worse"))
    assert (compared["wer"]["a"], compared["wer"]["difference"]) == (reported["summary"]["wer"], 0.0)
    assert compared["wer"]["p"] == 1.0 and not compared["warnings"]


def same_run(folder: Path, undisturbed: Path) -> None:
    """Nothing tells that a run was disturbed: its metrics, weights and ledger are those of the other one."""
    theirs, ours = records(undisturbed / "metrics.jsonl"), records(folder / "metrics.jsonl")
    assert [line["step"] for line in ours] == [1, 2, 3, 4, 5, 6]
    assert without_times(ours) == without_times(theirs)
    expected, found = (load_file(f / "export" / "model.safetensors") for f in (undisturbed, folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected), "bit-identical weights"
    ids = [line["id"] for line in records(folder.parents[1] / "train.jsonl")]
    audit = Ledger(folder / "ledger.jsonl").audit(ids)
    assert audit.exact and audit.complete_epochs >= 2 and audit.trained > 0
    assert records(folder / "ledger.jsonl") == records(undisturbed / "ledger.jsonl")


def test_killed_and_resumed_run_is_the_same_run(undisturbed: Path, model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, model)
    folder = tmp_path / "runs" / "tiny"
    process = start("train", str(config))
    wait_for_steps(process, folder / "metrics.jsonl", 5)
    os.killpg(process.pid, signal.SIGKILL)  # the driver; Ray's own processes find out by themselves
    process.wait()
    run("train", str(config))
    same_run(folder, undisturbed)


@pytest.mark.slow
def test_a_run_whose_engines_read_the_learners_device_is_the_same_run(
    undisturbed: Path, model: Path, tmp_path: Path
) -> None:
    """The device is a CPU (`passes_for_gpu`). Before the first step, weights go through shared memory."""
    before = set(SHARED_MEMORY.iterdir())
    loss = {"name": "tests.end_to_end.passes_for_gpu:grpo_loss", "kl_coef": 0.01, "importance_cap": 2.0}
    run("train", str(write_config(tmp_path, model, learner__loss=loss)))
    folder = tmp_path / "runs" / "tiny"
    same_run(folder, undisturbed)
    log = (folder / "log.jsonl").read_text(encoding="utf-8")
    ways = re.findall("weights go through (.*?): all engines", log)
    assert ways == ["shared memory", "device memory"], log
    assert "through the host" not in log
    assert set(SHARED_MEMORY.iterdir()) <= before


@pytest.mark.slow
def test_interrupted_run_saves_at_once_and_is_the_same_run(undisturbed: Path, model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, model, checkpoint__every=100)
    folder = tmp_path / "runs" / "tiny"
    process = start("train", str(config))
    wait_for_steps(process, folder / "metrics.jsonl", 1)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    done = len(records(folder / "metrics.jsonl"))
    assert done < 4 and f"interrupted after {done} steps" in output
    assert (folder / "checkpoints" / f"step-{done:06d}" / "state.json").is_file()
    run("train", str(config))
    same_run(folder, undisturbed)


@pytest.mark.slow
def test_learning_rate_zero_changes_nothing(model: Path, tmp_path: Path) -> None:
    run("train", str(write_config(tmp_path, model, learner__lr=0.0)))
    folder = tmp_path / "runs" / "tiny"
    before, after = load_file(model / "model.safetensors"), load_file(folder / "export" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["before"] == summary["after"] and summary["steps"] == 6
