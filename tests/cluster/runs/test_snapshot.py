"""Data that change under a run are noticed, and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster.runs.snapshot import check_data
from speech.errors import UserError
from speech.manifests import Manifest, load_manifest

LINES = [{"id": f"u{i}", "audio": f"{i % 3}.wav", "text": f"word {i}"} for i in range(9)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        record(folder / f"{i}.wav", i)
    return folder


def record(path: Path, seed: int) -> None:
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000), 16_000)


def manifest(folder: Path, lines: list[dict[str, str]]) -> Manifest:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return load_manifest(path)


def refusal(folder: Path, changed: Manifest, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        check_data(folder, {split: changed}, resumed=True)
    return str(caught.value)


def test_the_same_data_are_accepted_wherever_they_are(data: Path, tmp_path: Path) -> None:
    check_data(tmp_path, {"train": manifest(data, LINES), "test": manifest(data, LINES[:2])}, resumed=False)
    assert sorted(file.name for file in (tmp_path / "data").iterdir() if file.suffix == ".utterances") == [
        "test.utterances",
        "train.utterances",
    ]
    moved = data.rename(tmp_path / "moved")
    (tmp_path / "data").mkdir()
    for file in moved.glob("*.utterances"):
        file.rename(tmp_path / "data" / file.name)
    written = (tmp_path / "data" / "train.utterances").stat().st_mtime_ns
    check_data(tmp_path, {"train": manifest(moved, LINES), "test": manifest(moved, LINES[:2])}, resumed=True)
    assert (tmp_path / "data" / "train.utterances").stat().st_mtime_ns == written


def test_what_has_changed_is_named(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    check_data(run, {"train": manifest(data, LINES)}, resumed=False)
    edited = [line | {"text": "other"} for line in LINES[:4]] + [LINES[4] | {"language": "en"}] + LINES[5:7]
    record(data / "2.wav", 9)
    edited += [{"id": "new", "audio": "0.wav", "text": "x"}]
    text = refusal(run, manifest(data, edited))
    assert text.splitlines() == [
        f"{run}: the data have changed since the run began",
        f"  data.train: {data}/m.jsonl:",
        "    5 changed: u0 (text: 'word 0' → 'other'), u1 (text: 'word 1' → 'other'), u2 (text: 'word 2' → 'other'), …",
        "    1 with another audio file: u5",
        "    2 gone: u7, u8",
        "    1 new: new",
        "    resume with the old data, or start a run with another name",
    ]
    record(data / "2.wav", 2)
    assert "another order" in refusal(run, manifest(data, LINES[:1] + LINES[:0:-1])).splitlines()[2]
    # The refusals have changed nothing: the first data are still those of the run.
    check_data(run, {"train": manifest(data, LINES)}, resumed=True)


def test_a_changed_recording_alone_is_noticed(data: Path, tmp_path: Path) -> None:
    """The same ids, texts and lengths; the content of the file decides, not its time."""
    run = tmp_path / "run"
    run.mkdir()
    check_data(run, {"test": manifest(data, LINES)}, resumed=False)
    (data / "1.wav").touch()
    check_data(run, {"test": manifest(data, LINES)}, resumed=True)
    record(data / "1.wav", 7)
    text = refusal(run, manifest(data, LINES), "test")
    assert "3 with another audio file: u1, u4, u7" in text and "evaluation.before=false" in text


def test_a_run_that_begins_anew_or_is_older_takes_what_it_finds(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    check_data(run, {"train": manifest(data, LINES)}, resumed=True)
    check_data(run, {"train": manifest(data, LINES[1:])}, resumed=False)
    check_data(run, {"train": manifest(data, LINES[1:])}, resumed=True)
    assert "1 new: u0" in refusal(run, manifest(data, LINES))


def test_a_damaged_record_is_said(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    check_data(run, {"train": manifest(data, LINES)}, resumed=False)
    (run / "data" / "train.utterances").write_bytes(b"x")
    assert "damaged (the checksum is wrong); remove it" in refusal(run, manifest(data, LINES))
