from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster.cli import main
from cluster.commands import prepare
from speech.audio import load_audio
from speech.errors import InputError, UserError
from speech.manifests import load_manifest
from tests.speech.manifests.foreign.data_sets import MAKERS, write_recordings


def write_lines(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten utterances of two speakers, cut from one stereo file of 10 s at 44.1 kHz."""
    folder = tmp_path / "source"
    folder.mkdir()
    time = np.arange(441_000) / 44_100
    soundfile.write(folder / "long.wav", np.stack([np.sin(2000 * time), np.zeros_like(time)], axis=1), 44_100)
    return write_lines(
        folder / "all.jsonl",
        *(
            {"id": f"u/{i}", "audio": "long.wav", "text": "alpha beta", "speaker": f"s{i % 2}", "start": i,
             "duration": 0.5 + i / 20, "keywords": ["beta"] if i < 3 else []}
            for i in range(10)
        ),
    )  # fmt: skip


def run(*options: object) -> None:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    assert prepare.run(parser.parse_args([str(option) for option in options])) == 0


def ids(path: Path) -> list[str]:
    return [utterance.id for utterance in load_manifest(path).utterances]


def test_check_only_prints_statistics(source, capsys):
    run(source)
    printed = capsys.readouterr().out
    assert "utterances" in printed and "under 1 s" in printed
    assert sorted(path.name for path in source.parent.iterdir()) == ["all.jsonl", "long.wav"]


@pytest.mark.parametrize("audio", ["flac", "opus"])
def test_conversion_makes_small_mono_files(source, tmp_path, audio):
    run(source, "--out", tmp_path / "out", "--audio", audio)
    utterances = load_manifest(tmp_path / "out" / "manifest.jsonl").utterances
    assert [u.id for u in utterances] == [f"u/{i}" for i in range(10)]
    for i, utterance in enumerate(utterances):
        info = soundfile.info(utterance.audio)
        assert (info.channels, info.samplerate, utterance.start) == (1, 16_000, 0.0)
        assert info.duration == pytest.approx(0.5 + i / 20, abs=1e-3)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_conversion_continues_and_notices_a_new_source(source, tmp_path):
    run(source, "--out", tmp_path / "out", "--audio", "flac")
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.flac")}
    assert len(first) == 10
    lost = next(iter(first))
    lost.unlink()
    run(source, "--out", tmp_path / "out", "--audio", "flac")
    again = {path: path.stat().st_mtime_ns for path in first}
    assert {path for path in first if first[path] != again[path]} == {lost}
    later = max(again.values()) / 1e9 + 10
    os.utime(source.parent / "long.wav", (later, later))
    run(source, "--out", tmp_path / "out", "--audio", "flac")
    assert all(path.stat().st_mtime_ns != again[path] for path in first)


def test_audio_that_breaks_off(source, tmp_path, capsys):
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, np.random.default_rng(0).standard_normal(16_000) * 0.1, 16_000)
    (source.parent / "half.flac").write_bytes(whole.read_bytes()[:8_000])
    with source.open("a") as file:
        file.write(json.dumps({"id": "half", "audio": "half.flac", "text": "x"}) + "\n")
    options = (source, "--out", tmp_path / "out", "--audio", "flac")
    with pytest.raises(InputError, match=r"half\.flac: cannot be decoded"):
        run(*options)
    assert not list((tmp_path / "out").glob("*.jsonl"))
    run(*options, "--on-bad", "skip")
    assert "half" not in ids(tmp_path / "out" / "manifest.jsonl")
    assert "half.flac" in (tmp_path / "out" / "skipped.jsonl").read_text()
    assert "left out, 1 problems" in capsys.readouterr().err


def test_selection(source, tmp_path):
    for name, wrong in (("a", range(4)), ("b", range(2, 6))):
        lines = [{"id": f"u/{i}", "hypothesis": "alpha" if i in wrong else "alpha beta"} for i in range(10)]
        write_lines(tmp_path / f"{name}.jsonl", *lines)
    out = tmp_path / "out"
    both = ("--hypotheses", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    run(source, "--out", out, *both, "--error-rate", 0.5, 1)
    assert ids(out / "manifest.jsonl") == ["u/2", "u/3"]
    run(source, "--out", out, *both, "--disagreement", 0.4)
    assert ids(out / "manifest.jsonl") == ["u/0", "u/1", "u/4", "u/5"]
    run(source, "--out", out, *both, "--error-rate", 0.5, 1, "--repetitive", 0.9, 0)
    assert ids(out / "manifest.jsonl") == ["u/2", "u/3", "u/8", "u/9"]
    run(source, "--out", out, "--repetitive", 0.9, 0)
    assert ids(out / "manifest.jsonl") == ["u/8", "u/9"]
    run(source, "--out", out, "--keywords", 1, "--longer-than", 0.55)
    assert ids(out / "manifest.jsonl") == ["u/1", "u/2"]
    run(source, "--out", out, "--random", 4, "--seed", 3)
    assert len(ids(out / "manifest.jsonl")) == 4


def test_split(source, tmp_path):
    run(source, "--out", tmp_path / "out", "--split", "train=0.5", "test=0.5", "--by-speaker")
    train, test = (load_manifest(tmp_path / "out" / f"{name}.jsonl").utterances for name in ("train", "test"))
    assert len({u.speaker for u in train}) == len({u.speaker for u in test}) == 1
    assert len(train) + len(test) == 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--audio", "flac"], "--out DIR"),
        (["--hypotheses", "x.jsonl"], "--error-rate LOW HIGH"),
        (["--error-rate", "0", "1"], "--hypotheses goes with"),
        (["--hypotheses", "x.jsonl", "--disagreement", "0.1"], "two or more"),
        (["--by-speaker"], "goes with --split"),
        (["--out", "o", "--split", "a=0.5", "b=0.4"], "they sum to 0.9"),
        (["--min-seconds", "5", "--max-seconds", "1"], "min_seconds <= max_seconds"),
        (["--longer-than", "9"], "no utterance of 10 meets the selection"),
        (["--format", "kalid"], "did you mean 'kaldi'"),
    ],
)
def test_contradictions_are_explained(source, options, says):
    with pytest.raises(UserError, match=says):
        run(source, *options)


def test_the_input_is_never_replaced(source):
    source = source.rename(source.with_name("manifest.jsonl"))
    with pytest.raises(UserError, match="would replace the input"):
        run(source, "--out", source.parent)


def test_output_folder_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be"):
        run(source, "--out", tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        run(source, "--out", tmp_path / "file", "--audio", "flac")


def test_from_the_command_line(source, tmp_path, capsys):
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 0
    assert main(["prepare", str(tmp_path / "gone.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert "speechrl prepare " in capsys.readouterr().out.partition("examples:")[2]


@pytest.mark.parametrize("name", MAKERS)
def test_data_sets_of_other_tools_are_checked_and_converted(tmp_path, capsys, name):
    """Nothing is written by a check; a conversion reads the sound out of tars, parquet and Arrow."""
    expected = write_recordings(tmp_path / "theirs")
    path = MAKERS[name][1](tmp_path / "theirs", expected)
    before = sorted((tmp_path / "theirs").rglob("*"))
    run(path)
    assert "language zh" in capsys.readouterr().out
    assert sorted((tmp_path / "theirs").rglob("*")) == before
    run(path, "--out", tmp_path / "out", "--audio", "flac")
    for found, one in zip(load_manifest(tmp_path / "out" / "manifest.jsonl").utterances, expected, strict=True):
        assert (found.id, found.text, found.language) == (one.id, one.text, one.language)
        np.testing.assert_allclose(load_audio(found, 16_000), load_audio(one, 16_000), atol=2**-15)


def test_a_name_in_gz_is_one_compressed_manifest(source, tmp_path):
    out = tmp_path / "out" / "rl.jsonl.gz"
    run(source, "--out", out, "--audio", "flac")
    assert out.read_bytes().startswith(b"\x1f\x8b")
    assert ids(out) == ids(source)
    assert sorted(path.name for path in out.parent.iterdir()) == ["audio", "rl.jsonl.gz"]
    with pytest.raises(UserError, match="--out must be a folder"):
        run(source, "--out", out, "--split", "a=0.5", "b=0.5")
