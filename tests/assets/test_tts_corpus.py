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
    prompts = [text for part in texts.prompts.values() for text in part]
    parts = {**texts.splits, "recorded": texts.recorded, "last": texts.last, "prompts": prompts}
    for (name, one), (other, two) in combinations(parts.items(), 2):
        assert not set(one) & set(two), (name, other)
    assert all(len(set(part)) == len(part) for part in parts.values())


def test_six_in_ten_run_on_recordings_go_on_and_none_says_a_text_of_a_split(manifests: Manifests) -> None:
    texts = tts_speech.write_texts(seed=1)
    unsaid = {line["text"] for lines in manifests.values() for line in lines}
    assert not unsaid & {words for pair in texts.run_on for words in pair}
    more = [words.split() for _, words in texts.run_on if words]
    assert len(more) / len(texts.run_on) == pytest.approx(tts_speech.RUN_ON_SHARE, abs=0.02)
    assert max(map(len, more)) == max(tts_speech.RUN_ON_WORDS)


def test_run_on_recordings_are_of_what_is_to_be_spoken(manifests: Manifests) -> None:
    """Distinct sentences are numbers before long; these are not."""

    def numbers(texts: list[str]) -> float:
        return sum(text.startswith(("dial", "the number")) for text in texts) / len(texts)

    said = numbers([text for text, _ in tts_speech.write_texts(seed=1).run_on])
    assert said < 1.5 * numbers([line["text"] for line in manifests["train"]])


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
