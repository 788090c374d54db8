from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech.audio import AudioLimits, audio_seconds, load_audio
from speech.errors import InputError
from speech.records import Utterance


def utterance(path: Path, **fields: Any) -> Utterance:
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


@pytest.mark.parametrize(("start", "duration"), [(3.0, None), (0.5, 1.01), (-1.0, 0.5)])
def test_segment_outside_the_file(tmp_path, write_tone, start, duration):
    path = write_tone(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"lies outside the file, which lasts 1\.00 s"):
        load_audio(utterance(path, start=start, duration=duration), 16_000)


def test_a_channel_may_be_named(tmp_path):
    left, right = np.full(1600, 0.5), np.full(1600, -0.25)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    assert np.allclose(load_audio(utterance(tmp_path / "a.wav", channel=1), 16_000), -0.25)
    with pytest.raises(InputError, match="has no channel 2: it has 2, the first is 0"):
        load_audio(utterance(tmp_path / "a.wav", channel=2), 16_000)


def test_channels_that_cancel_are_no_silence(tmp_path):
    sine = 0.5 * np.sin(np.arange(16_000) * 0.1)
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    sounds = {
        "cancels": [sine, -sine],
        "nearly.ogg": [sine, -0.95 * sine],
        "cancels of four": [sine, -sine, 1e-4 * sine, np.zeros_like(sine)],
        "mono twice": [sine, sine],
        "one of eight": [sine, *[np.zeros_like(sine)] * 7],
        "nothing in common": [sine, noise],
        "partly": [sine, -0.8 * sine],
        "silence": [np.zeros_like(sine)] * 2,
    }
    cancelled = []
    for name, channels in sounds.items():
        path = tmp_path / (name if name.endswith(".ogg") else f"{name}.wav")
        soundfile.write(path, np.stack(channels, axis=1), 16_000)
        try:
            load_audio(utterance(path), 16_000)
        except InputError as error:
            assert "channels cancel" in str(error)
            cancelled.append(name)
            assert np.abs(load_audio(utterance(path, channel=0), 16_000)).max() > 0.4
    assert cancelled == ["cancels", "nearly.ogg", "cancels of four"]


def test_silence_has_no_transcript(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    with pytest.raises(InputError, match="is silent: every sample is 0"):
        load_audio(Utterance(id="a", audio=str(tmp_path / "a.wav"), text="hello"), 16_000)
    for text in ("", "…"):
        assert not load_audio(Utterance(id="a", audio=str(tmp_path / "a.wav"), text=text), 16_000).any()


CONTAINERS = {
    "a.wav": {}, "adpcm.wav": {"subtype": "IMA_ADPCM"}, "mulaw.wav": {"subtype": "ULAW"}, "x.wav": {"format": "WAVEX"},
    "gsm.wav": {"subtype": "GSM610"}, "a.rf64": {"format": "RF64"}, "a.w64": {}, "a.aiff": {}, "a.au": {},
    "a.sph": {"format": "NIST"}, "a.svx": {"format": "SVX"}, "a.voc": {"format": "VOC"}, "a.caf": {}, "a.ogg": {},
    "a.opus": {"format": "OGG", "subtype": "OPUS"}, "a.flac": {}, "a.mp3": {},
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_that_was_cut_is_not_taken_for_a_shorter_one(tmp_path, write_tone, name):
    whole = write_tone(tmp_path / name, seconds=2.0, **CONTAINERS[name])
    assert len(load_audio(utterance(whole), 16_000)) == pytest.approx(32_000, abs=800)
    content = whole.read_bytes()
    for share in (0.5, 0.75, 0.9):
        cut = whole.with_stem(f"cut-{share}")
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=r"breaks off|cannot be decoded|holds no samples"):
            load_audio(utterance(cut), 16_000)
        if name.endswith((".flac", ".mp3")):
            continue  # the header alone does not tell
        with pytest.raises(InputError, match=r"breaks off|cannot be decoded|holds no samples"):
            audio_seconds(cut)


@pytest.mark.parametrize("declared", [0xFFFF_FFFF, 0x7FFF_F000, 0x7FFF_FFFF, 64_002])
def test_a_stream_whose_length_nobody_knew_is_whole(tmp_path, write_tone, declared):
    """ffmpeg and sox write these into a pipe; a header that is off by a sample is nothing lost."""
    path = write_tone(tmp_path / "a.wav", seconds=2.0)
    content = bytearray(path.read_bytes())
    content[40:44] = declared.to_bytes(4, "little")
    path.write_bytes(content)
    assert audio_seconds(path) == 2.0
    assert len(load_audio(utterance(path), 16_000)) == 32_000


def bad_files(folder: Path) -> dict[str, str]:
    """Name of a file in `folder` → what its error must say."""
    sine = 0.5 * np.sin(np.arange(16_000) * 0.1)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_bytes(b"hello " * 100)
    (folder / "headerless.raw").write_bytes(b"1234" * 100)
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "no_samples.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "nan.wav", np.full(1600, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(folder / "inf.wav", np.stack([np.full(1600, np.inf), sine[:1600]], 1), 16_000, subtype="FLOAT")
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
        "inf.wav": "not finite",
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
