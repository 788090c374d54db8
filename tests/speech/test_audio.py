from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio import AudioLimits, audio_seconds, load_audio
from speech.errors import InputError
from speech.records import Utterance


def utterance(path: Path, **fields: float | None) -> Utterance:
    return Utterance(id="a", audio=str(path), text="", **fields)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.flac", {}),
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
    ],
)
def test_common_formats_give_the_same_wave(tmp_path, write_tone, name, options):
    path = write_tone(tmp_path / name, seconds=1.5, **options)
    wave = load_audio(utterance(path), 16_000)
    exact = load_audio(utterance(write_tone(tmp_path / "exact.wav", seconds=1.5)), 16_000)
    assert wave.dtype == np.float32
    assert wave.shape == (24_000,)
    assert audio_seconds(path) == pytest.approx(1.5)
    assert np.abs(wave - exact)[1600:-1600].max() < 0.05


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_length_and_frequency(tmp_path, write_tone, rate):
    wave = load_audio(utterance(write_tone(tmp_path / "a.wav", rate=rate)), 16_000)
    assert len(wave) == 16_000
    assert np.argmax(np.abs(np.fft.rfft(wave))) == 300


def test_channels_are_averaged(tmp_path):
    left, right = np.full(1600, 0.5), np.full(1600, -0.1)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    assert np.allclose(load_audio(utterance(tmp_path / "a.wav"), 16_000), 0.2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
    ],
)
def test_segment_is_cut_out(tmp_path, write_tone, name, options):
    path = write_tone(tmp_path / name, seconds=2.0, **options)
    whole = load_audio(utterance(path), 16_000)
    part = load_audio(utterance(path, start=0.5, duration=1.0), 16_000)
    assert part.shape == (16_000,)
    assert np.abs(part - whole[8_000:24_000]).max() < 1e-3
    assert len(load_audio(utterance(path, start=1.5), 16_000)) == 8_000


def test_duration_rounded_up_by_the_manifest_is_accepted(tmp_path, write_tone):
    path = write_tone(tmp_path / "a.wav", seconds=0.996)
    assert len(load_audio(utterance(path, duration=1.0), 16_000)) == 15_936


@pytest.mark.parametrize(("start", "duration"), [(3.0, None), (0.5, 2.0), (-1.0, 0.5)])
def test_segment_outside_the_file(tmp_path, write_tone, start, duration):
    path = write_tone(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"lies outside the file, which lasts 1\.00 s"):
        load_audio(utterance(path, start=start, duration=duration), 16_000)


def bad_files(folder: Path) -> dict[str, str]:
    """Name of a file in `folder` → what its error must say."""
    sine = 0.5 * np.sin(np.arange(16_000) * 0.1)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_bytes(b"hello " * 100)
    (folder / "headerless.raw").write_bytes(b"1234" * 100)
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "no_samples.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "nan.wav", np.full(1600, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(folder / "unscaled.wav", sine * 20_000, 16_000, subtype="FLOAT")
    soundfile.write(folder / "slow.wav", sine, 100)
    soundfile.write(folder / "whole.flac", sine, 16_000)
    soundfile.write(folder / "whole.mp3", sine, 16_000)
    for suffix in ("flac", "mp3"):
        whole = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
    flac = bytearray((folder / "whole.flac").read_bytes())
    flac[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples; streaming encoders leave them 0
    flac[22:26] = bytes(4)
    (folder / "endless.flac").write_bytes(flac)
    return {
        "missing.wav": "no such file",
        "folder.wav": "is not a file",
        "empty.wav": "cannot be decoded",
        "text.wav": "cannot be decoded",
        "headerless.raw": "has no header",
        "no_samples.wav": "holds no samples",
        "nan.wav": "not finite",
        "unscaled.wav": "must be scaled",
        "slow.wav": "sample rate of 100 Hz",
        "half.flac": "cannot be decoded",
        "half.mp3": "breaks off",
        "endless.flac": "states no length",
    }


def test_bad_files_are_named_with_a_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(InputError) as caught:
            load_audio(utterance(tmp_path / name), 16_000)
        assert reason in str(caught.value), name
        assert [problem.file for problem in caught.value.problems] == [str(tmp_path / name)]


def test_slight_overshoot_is_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1600, 1.3), 16_000, subtype="FLOAT")
    assert load_audio(utterance(tmp_path / "a.wav"), 16_000).max() == 1.0


def test_limits():
    limits = AudioLimits(min_seconds=0.5, max_seconds=2.0)
    assert limits.complaint(0.5) is None
    assert limits.complaint(2.0) is None
    assert "shorter" in (limits.complaint(0.4) or "")
    assert "longer" in (limits.complaint(2.1) or "")
    with pytest.raises(ValueError, match="min_seconds <= max_seconds"):
        AudioLimits(min_seconds=3.0, max_seconds=2.0)
