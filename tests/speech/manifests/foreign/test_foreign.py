"""Data sets of other tools are read as they are: the same sound, text, language and length as in our own form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speech.audio import load_audio
from speech.manifests import load_manifest, write_manifest
from speech.records import Utterance
from tests.speech.manifests.foreign.data_sets import MAKERS, RATE, write_recordings

SPEAKERLESS = ("chat", "qwen3_asr")


def assert_same(found: Utterance, expected: Utterance) -> None:
    assert (found.text, found.language, found.channel) == (expected.text, expected.language, None)
    assert found.duration == pytest.approx(expected.duration, abs=1e-6)
    np.testing.assert_array_equal(load_audio(found, RATE), load_audio(expected, RATE))


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("name", MAKERS)
def test_each_is_read_without_conversion(tmp_path: Path, name: str, suffix: str) -> None:
    expected = write_recordings(tmp_path, suffix)
    format, make = MAKERS[name]
    path = make(tmp_path, expected)
    manifest = load_manifest(path)
    assert manifest.format == format
    assert [u.id for u in manifest.utterances] == [u.id for u in expected]
    for found, one in zip(manifest.utterances, expected, strict=True):
        assert_same(found, one)
        assert found.speaker == (None if format in SPEAKERLESS else one.speaker)
    # The same without headers, of which only the length is not known, and twice the same.
    trusted = load_manifest(path, check_audio="none")
    assert trusted.fingerprint() == manifest.fingerprint()
    assert len(set(manifest.places)) == len(expected)


@pytest.mark.parametrize("name", MAKERS)
def test_each_is_written_as_ours_and_read_again(tmp_path: Path, name: str) -> None:
    _, make = MAKERS[name]
    manifest = load_manifest(make(tmp_path, write_recordings(tmp_path, "flac")))
    for out in (tmp_path / "ours.jsonl", tmp_path / "ours.jsonl.gz"):
        write_manifest(out, manifest.utterances)
        ours = load_manifest(out)
        assert ours.format == "jsonl"
        for found, one in zip(ours.utterances, manifest.utterances, strict=True):
            assert found.audio == one.audio
            assert_same(found, one)
