"""The texts and voices of the TTS demo are what their builder promises."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from assets.build import tts_speech

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "assets" / "tts_speech"
SIZES = {"train": tts_speech.TRAIN, "valid": tts_speech.VALID, "test": tts_speech.TEST}

Manifests = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return {
        split: [json.loads(line) for line in (CORPUS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SIZES
    }


def test_the_shipped_texts_are_those_of_the_builder(manifests: Manifests) -> None:
    texts = tts_speech.write_texts(seed=1)
    for split, lines in manifests.items():
        assert [line["text"] for line in lines] == texts.splits[split]
        assert len(lines) == SIZES[split]


def test_no_text_of_a_split_is_said_or_spoken_elsewhere(manifests: Manifests) -> None:
    texts = tts_speech.write_texts(seed=1)
    parts = {**texts.splits, "recorded": texts.recorded, "prompts": [t for p in texts.prompts.values() for t in p]}
    for (name, one), (other, two) in combinations(parts.items(), 2):
        assert not set(one) & set(two), (name, other)
    assert all(len(set(part)) == len(part) for part in parts.values())


def test_every_split_has_its_own_prompts_of_all_voices(manifests: Manifests) -> None:
    prompts = {split: {line["prompt_audio"] for line in lines} for split, lines in manifests.items()}
    for one, other in combinations(prompts, 2):
        assert not prompts[one] & prompts[other]
    on_disk = {path.relative_to(CORPUS).as_posix() for path in (CORPUS / "audio").iterdir()}
    assert on_disk == set.union(*prompts.values())
    for split, lines in manifests.items():
        assert len(prompts[split]) == 4 * tts_speech.PROMPTS[split]
        voices = {line["prompt_audio"]: line["speaker"] for line in lines}
        assert set(voices.values()) == set(tts_speech.GENDERS)
        assert all(voices[line["prompt_audio"]] == line["speaker"] for line in lines)


def test_prompts_are_clean_speech_at_16_khz(manifests: Manifests) -> None:
    for line in manifests["test"][:16]:
        wave, rate = soundfile.read(CORPUS / line["prompt_audio"], dtype="float32")
        assert rate == 16_000 and wave.ndim == 1 and 0.8 < len(wave) / rate < 6.0
        assert 0.05 < float(np.abs(wave).max()) <= 1.0
