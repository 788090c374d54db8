"""`speechrl train --dry-run` finds in one go what would stop a run, and starts nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import ray
import soundfile

from cluster.cli import main
from tests.end_to_end.ray_head import ROOT, ray_head
from tests.end_to_end.runs import write_config


@pytest.fixture
def config(tmp_path: Path, demo_checkpoint: Path) -> Path:
    return write_config(tmp_path, demo_checkpoint)


def checked(capsys: pytest.CaptureFixture[str], config: Path, code: int, *overrides: str) -> str:
    running = ray.is_initialized()  # other tests' session, perhaps
    assert main(["train", str(config), "--dry-run", *overrides]) == code
    assert ray.is_initialized() == running
    assert not (config.parent / "runs").exists(), "no folder of a run is left behind"
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out if code == 0 else captured.err


def spoil(manifest: Path, line: int, **changes: object) -> None:
    lines = [json.loads(text) for text in manifest.read_text(encoding="utf-8").splitlines()]
    lines[line] |= changes
    manifest.write_text("".join(json.dumps(item) + "\n" for item in lines), encoding="utf-8")


def test_a_run_that_would_start(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = checked(capsys, config, 0)
    assert "nothing is wrong" in out and "train 10, test 4, replay 6" in out


def test_one_message_names_machine_manifests_prompts_and_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path / "train.jsonl", 2, audio="nowhere.wav")
    spoil(tmp_path / "valid.jsonl", 1, text=7)
    error = checked(capsys, config, 2, "rewards.sound.judge.path=/no/judge")
    assert "rewards.sound.judge.path: folder /no/judge does not exist" in error
    assert "train.jsonl:3" in error and "nowhere.wav" in error and "valid.jsonl:2" in error


def test_prompts_that_do_not_fit_and_recordings_that_cannot_be_read(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = checked(capsys, config, 2, "engines.max_model_len=40")
    assert "new tokens do not fit engines.max_model_len=40" in error
    whole = soundfile.SoundFile(json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["audio"])
    soundfile.write(tmp_path / "silent.wav", np.zeros(whole.frames), whole.samplerate)
    spoil(tmp_path / "train.jsonl", 0, audio=str(tmp_path / "silent.wav"))
    assert "silent.wav" in checked(capsys, config, 2)
    assert checked(capsys, config, 0, "data.on_bad=skip")


def test_keys_that_make_no_sense_are_named_with_what_is_not_there(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = checked(capsys, config, 2, "sampling.group_size=1", "model.path=/no/model")
    assert "a group of one has no advantage" in error and "folder /no/model does not exist" in error


def test_a_run_of_another_configuration(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "elsewhere" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 5\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    before = sorted(tmp_path.rglob("*"))
    error = checked(capsys, config, 2, f"runs_dir={folder.parent}")
    assert "holds a run with another configuration" in error and "seed: 5 → 3" in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_gpus_of_a_cluster_that_is_to_be_joined(config: Path) -> None:
    with ray_head(token=None) as head:
        arguments = ("train", str(config), "--dry-run", "--address", head.gcs)
        assert "nothing is wrong" in run_there(head.environment, 0, *arguments)
        gpus = ("engines.gpus_per_engine=1", "learner.gpus_per_rank=1", "engines.dtype=bfloat16")
        error = run_there(head.environment, 2, *arguments, *gpus, "data.train=/no/train.jsonl")
    assert "asks for 2 GPUs" in error and "the cluster has 0" in error and "/no/train.jsonl does not exist" in error


def run_there(environment: Mapping[str, str], code: int, *arguments: str) -> str:
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
