"""What looks wrong in a data set is found, and what is right is not named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.preparation.inspection import ENOUGH, inspect, overlap, said, sound_fault
from speech.preparation.sounds import SAMPLE_RATE, Sound, listen, sound_of
from speech.records import Utterance

TONE = 0.5 * np.sin(np.arange(SAMPLE_RATE) / 3).astype(np.float32)


def utterance(name: str, text: str, duration: float = 2.0, **more: str) -> Utterance:
    return Utterance(id=name, audio=f"/{name}.wav", text=text, language="en", duration=duration, **more)


def test_a_transcript_that_does_not_fit_is_found_by_the_rate_of_its_language() -> None:
    usual = [utterance(f"u{i}", "turn on the light") for i in range(ENOUGH)]
    odd = [utterance("cut", "turn on the light", 0.5), utterance("lost", "on")]
    found = inspect([*usual, *odd])
    assert set(found.odd) == {"cut", "lost"}
    assert "too long: 28.0" in found.odd["cut"] and "too short: 1.0" in found.odd["lost"]
    assert inspect([*usual[: ENOUGH - 3], *odd]).odd == {}, "too few to know what is usual"


def test_languages_have_rates_of_their_own() -> None:
    english = [utterance(f"e{i}", "turn on the light") for i in range(ENOUGH)]
    chinese = [Utterance(id=f"z{i}", audio="", text="打开灯", language="zh", duration=2.0) for i in range(ENOUGH)]
    assert inspect([*english, *chinese]).odd == {}


def test_histograms_count_every_utterance_once() -> None:
    found = inspect([utterance("a", "x" * 5), utterance("b", "x" * 10), utterance("c", "x" * 1000)])
    assert found.lengths == [1, 1, 0, 0, 0, 0, 1] and sum(found.rates) == 3
    assert found.characters == {"x": 1015}


def test_the_same_text_in_other_writing_is_a_duplicate() -> None:
    assert said("Turn on, the LIGHT!") == said("turn on the light")
    texts = {"a": "Turn on, the light!", "b": "off", "c": "turn on the light", "d": "", "e": "…"}
    assert inspect([utterance(name, text) for name, text in texts.items()]).same_text == [["a", "c"]]


def test_overlap_counts_texts_sounds_and_speakers() -> None:
    one, two = Sound("same", 0.5, 0.0, 0.0), Sound("other", 0.5, 0.0, 0.0)
    train = [utterance("t1", "on", speaker="s"), utterance("t2", "off", speaker="r")]
    test = [utterance("e1", "On.", speaker="s"), utterance("e2", "left")]
    both = overlap(train, test, {"t1": two, "t2": one}, {"e1": Sound("new", 1, 0, 0), "e2": one})
    assert (both.texts, both.sounds, both.speakers) == (1, 1, 1)
    assert both.examples == (("t2", "e2"), ("t1", "e1"))


@pytest.mark.parametrize(
    ("wave", "fault"),
    [
        (TONE, None),
        (np.zeros_like(TONE), "silence"),
        (1e-4 * TONE, "silence"),
        ((4 * TONE).clip(-1, 1), "clipped"),
        (np.concatenate([TONE, np.zeros(2 * SAMPLE_RATE, np.float32)]), "67% of it is near silence"),
        (np.zeros(0, np.float32), "silence"),
    ],
)
def test_recordings(wave: np.ndarray, fault: str | None) -> None:
    found = sound_fault(sound_of(wave))
    assert found == fault or (fault is not None and fault in (found or ""))


def test_equal_samples_are_found_in_whatever_file_they_lie(tmp_path: Path) -> None:
    utterances = []
    for name, wave in (("a.wav", TONE), ("b.flac", TONE), ("c.wav", -TONE)):
        soundfile.write(tmp_path / name, (wave * 2**15).astype(np.int16), SAMPLE_RATE)
        utterances.append(Utterance(id=name, audio=str(tmp_path / name), text="x", duration=1.0))
    (tmp_path / "d.wav").write_bytes(b"RIFF")
    sounds, problems = listen([*utterances, Utterance(id="d", audio=str(tmp_path / "d.wav"), text="x")])
    assert inspect(utterances, sounds).same_sound == [["a.wav", "b.flac"]]
    assert "d.wav" in str(problems[0]) and len(problems) == 1
