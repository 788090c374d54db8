"""Every mistake a user makes gets one clear message and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from cluster.cli import main
from tests.end_to_end.runs import write_config


@pytest.fixture
def config(tmp_path: Path, demo_checkpoint: Path) -> Path:
    return write_config(tmp_path, demo_checkpoint)


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    """Run in this process: every one of these must fail before Ray is started."""
    import ray

    running = ray.is_initialized()  # other tests' session, perhaps
    assert main(["train", *arguments]) == 2
    assert ray.is_initialized() == running
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def change_manifest(tmp_path: Path, **changes: Any) -> None:
    """Change the third line of the training manifest."""
    path = tmp_path / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[2] |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_missing_audio(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_manifest(tmp_path, audio="nowhere.wav")
    error = refused(capsys, tmp_path, str(config))
    assert "train.jsonl:3" in error and "audio" in error and "nowhere.wav" in error


def test_corrupt_audio(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.flac").write_bytes(b"fLaC but not really")
    change_manifest(tmp_path, audio="bad.flac")
    error = refused(capsys, tmp_path, str(config))
    assert "train.jsonl:3" in error and "bad.flac" in error


def test_recordings_too_long_for_the_context_are_found_before_anything_starts(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "long.wav", np.full(50 * 16_000, 0.1), 16_000)
    change_manifest(tmp_path, audio="long.wav", duration=50.0)
    error = refused(capsys, tmp_path, str(config))
    assert (
        "utterances that cannot be used with this configuration" in error and "train.jsonl:3: duration: 50.0 s" in error
    )
    assert "engines.max_model_len=160" in error
    error = refused(capsys, tmp_path, str(config), "data.on_bad=skip", "data.max_rejected=0.05")
    assert "1 of 10 utterances" in error and "data.max_rejected=0.05" in error


def test_wrong_sample_rate_is_resampled_not_misread(tmp_path: Path) -> None:
    from speech.audio import load_audio
    from speech.records import Utterance

    seconds = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "cd.wav", 0.5 * np.sin(2 * np.pi * 440 * seconds), 44_100)
    wave = load_audio(Utterance(id="a", audio=str(tmp_path / "cd.wav"), text="a"), 16_000)
    assert abs(len(wave) - 16_000) <= 1
    assert abs(np.argmax(np.abs(np.fft.rfft(wave))) * 16_000 / len(wave) - 440) < 2


def test_empty_transcript_duplicate_id_and_typo_are_all_reported(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads((tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    change_manifest(tmp_path, text="  ", langauge="en")
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(first) + "\n")
    error = refused(capsys, tmp_path, str(config))
    assert "train.jsonl:3: text" in error and "train.jsonl:3: langauge" in error and "'language'" in error
    assert "train.jsonl:11: id" in error and "line 1" in error


@pytest.mark.parametrize("objective", ["grpo", "sft"])
def test_a_transcript_that_would_be_an_order_to_the_model(
    tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    config = write_config(tmp_path, demo_checkpoint, objective=objective)
    if objective == "sft":
        values = json.loads(config.read_text(encoding="utf-8"))
        data = {key: values["data"][key] for key in ("train", "test", "batch_prompts")}
        kept = {key: values[key] for key in ("name", "steps", "runs_dir", "model", "engines")}
        config.write_text(json.dumps(kept | {"objective": "sft", "data": data}), encoding="utf-8")
    learned = tmp_path / ("train.jsonl" if objective == "sft" else "valid.jsonl")  # the latter is replayed
    lines = [json.loads(line) for line in learned.read_text(encoding="utf-8").splitlines()]
    lines[2] |= {"text": "turn on <|endoftext|> the light", "language": "en", "keywords": []}
    learned.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    error = refused(capsys, tmp_path, str(config))
    assert f"{learned.name}:3: text" in error and "<|endoftext|>" in error


def test_manifest_of_another_format(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text("id,audio,text\n1,a.wav,hello\n", encoding="utf-8")
    error = refused(capsys, tmp_path, str(config))
    assert "train.jsonl" in error and ("expected" in error or "looks like" in error)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.kl_coef=1", ["learner.kl_coef", "learner.loss.kl_coef"]),
        ("sampling.group_size=many", ["sampling.group_size"]),
        ("objective=grop", ["objective", "grpo"]),
        ("sampling.group_size=0", ["sampling.group_size"]),
        ("learner.loss.name=ppo", ["learner.loss.name", "grpo"]),
    ],
)
def test_wrong_configuration(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: list[str]
) -> None:
    error = refused(capsys, tmp_path, str(config), override)
    assert all(word in error for word in words), error


def test_unknown_reward(tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, demo_checkpoint, rewards={"items": [{"name": "acuracy"}]})
    error = refused(capsys, tmp_path, str(config))
    assert "acuracy" in error and "accuracy" in error


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_model_folder_lacks_a_file(
    config: Path, tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo_checkpoint, model)
    (model / name).unlink()
    error = refused(capsys, tmp_path, str(config), f"model.path={model}")
    assert name in error and str(model) in error


def test_output_folder_cannot_be_written(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    error = refused(capsys, tmp_path, str(config), f"runs_dir={tmp_path / 'file' / 'runs'}")
    assert str(tmp_path / "file") in error
