"""Encoders read sound out of tars, parquet and Arrow: the same embeddings and tokens as from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rollout.config import EncoderConfig
from rollout.encoders.encoder import UtteranceEncoder
from rollout.encoders.recordings import CodedSound, RecordingEncoder, segment_of
from speech.audio import load_audio
from speech.families import ModelFamily, load_family
from speech.manifests import load_manifest
from speech.records import BadUtterance, EncodedAudio
from tests.demo_checkpoint import write_demo_checkpoint
from tests.rollout.encoders.test_voices import LoudnessCodec
from tests.speech.manifests.foreign.data_sets import MAKERS, write_recordings


@pytest.mark.parametrize("name", ["tar, pattern", "parquet", "parquet, folder", "save_to_disk, bytes"])
def test_containers_encode_as_files_do(tmp_path: Path, name: str) -> None:
    expected = write_recordings(tmp_path, "flac")
    found = load_manifest(MAKERS[name][1](tmp_path, expected)).utterances
    assert "#" in found[0].audio
    family = load_family(write_demo_checkpoint(tmp_path / "model"))
    assert isinstance(family, ModelFamily)
    encoder = UtteranceEncoder(family, EncoderConfig(), load_audio)
    ours, theirs = (encoder.encode(encoder.load(list(some)), list(some)) for some in (expected, found))
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, EncodedAudio) and isinstance(other, EncodedAudio)
        assert one.embeddings is not None and other.embeddings is not None
        assert torch.equal(one.embeddings, other.embeddings)
    recordings = RecordingEncoder(LoudnessCodec(tmp_path), EncoderConfig(), load_audio)
    sounds = recordings.sounds([*expected, *found])
    for one, other in zip(expected, found, strict=True):
        a, b = sounds[segment_of(one)], sounds[segment_of(other)]
        assert isinstance(a, CodedSound) and isinstance(b, CodedSound)
        np.testing.assert_array_equal(a.tokens, b.tokens)


def test_a_container_that_vanishes_costs_its_utterances_alone(tmp_path: Path) -> None:
    expected = write_recordings(tmp_path)
    path = MAKERS["tar"][1](tmp_path, expected)
    found = list(load_manifest(path).utterances)
    path.unlink()
    family = load_family(write_demo_checkpoint(tmp_path / "model"))
    encoder = UtteranceEncoder(family, EncoderConfig(), load_audio)
    bad, good = encoder.load([found[0], expected[0]])
    assert isinstance(bad, BadUtterance) and "no such file" in bad.reason
    assert isinstance(good, np.ndarray)
