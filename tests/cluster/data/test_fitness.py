"""What is found wrong with utterances before the first step, without reading a recording."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster.config import RunConfig, load_config
from cluster.data.fitness import Check, policy_checks, training_judges, without_unfit
from cluster.data.prompts import PromptSource, load_manifests
from cluster.data.rejections import Rejections
from rewards.config import JudgeConfig
from speech.errors import InputError, UserError
from speech.families import ModelFamily, load_family
from speech.manifests import Manifest
from speech.records import BadUtterance, Utterance
from tests.demo_checkpoint import write_demo_checkpoint
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint
from tests.speech.families.tts_checkpoints import write_demo_tts


def configuration(*overrides: str) -> RunConfig:
    required = ["name=n", "model.path=m", "data.train=t", "engines.max_model_len=160", "sampling.max_new_tokens=10"]
    return load_config(None, [*required, *overrides])


def manifest(*utterances: Utterance, path: str = "m.jsonl") -> Manifest:
    places = tuple((path, line + 1) for line in range(len(utterances)))
    return Manifest(tuple(utterances), (), path, "jsonl", places)


def spoken(name: str, seconds: float | None, language: str | None = "en") -> Utterance:
    return Utterance(id=name, audio=f"/{name}.wav", text="hello", language=language, duration=seconds)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    family = load_family(write_demo_checkpoint(tmp_path_factory.mktemp("demo") / "m"))
    assert isinstance(family, ModelFamily)
    return family


@pytest.mark.parametrize("write", [write_demo_checkpoint, write_checkpoint])
def test_a_family_knows_the_positions_of_a_duration(write: object, tmp_path: Path) -> None:
    family = load_family(write(tmp_path / "m"))  # type: ignore[operator]
    assert isinstance(family, ModelFamily)
    encoder = family.load_encoder()
    for samples in (1, 399, 401, 8000, 8159, 8160, 16_000, 33_333, 48_001):
        assert family.frames(samples) == len(encoder.features(np.zeros(samples, np.float32))), samples


def test_lengths_that_cannot_fit_are_named_in_all_splits_at_once(demo: ModelFamily) -> None:
    config = configuration()
    checks = {split: policy_checks(config, demo, 10, []) for split in ("train", "test")}
    manifests = {
        "train": manifest(spoken("a", 1.0), spoken("long", 50.0), spoken("unknown", None)),
        "test": manifest(spoken("b", 2.0), spoken("longer", 60.0), path="t.jsonl"),
    }
    with pytest.raises(InputError, match="utterances that cannot be used with this configuration") as caught:
        without_unfit(config, manifests, checks)
    assert [(p.file, p.line, p.key) for p in caught.value.problems] == [
        ("m.jsonl", 2, "duration"),
        ("t.jsonl", 2, "duration"),
    ]
    assert "50.0 s: " in str(caught.value) and "do not fit engines.max_model_len=160" in str(caught.value)

    config = configuration("data.on_bad=skip", "data.max_rejected=0.5")
    kept, unfit = without_unfit(config, manifests, checks)
    assert list(unfit) == ["long"] and unfit["long"].startswith("duration: 50.0 s")
    assert kept["train"] is manifests["train"], "its prompts are accounted for in every epoch"
    assert [u.id for u in kept["test"].utterances] == ["b"] and len(kept["test"].skipped) == 1
    with pytest.raises(InputError, match=r"1 of 3 utterances .* more than data.max_rejected=0.1 allows"):
        without_unfit(configuration("data.on_bad=skip"), manifests, checks)


def test_the_check_agrees_with_what_the_encoder_makes(demo: ModelFamily) -> None:
    """Within the margin: the longest that fits passes, and half a second more does not."""
    (check,) = policy_checks(configuration(), demo, 10, [])

    def positions(seconds: float) -> int:
        return len(demo.layout(spoken("a", seconds), demo.audio_length(demo.frames(round(seconds * 16_000)))).token_ids)

    fits = max(s / 10 for s in range(1, 600) if positions(s / 10) + 10 <= 160)
    assert list(check(spoken("a", fits))) == [] and list(check(spoken("a", fits + 0.5))) != []


def test_languages_that_the_judges_do_not_read(demo: ModelFamily) -> None:
    english, several = JudgeConfig(kind="demo", path="j"), JudgeConfig(kind="demo", path="k", languages=["en", "zh"])

    def found(check: Check, language: str) -> list[tuple[str, str]]:
        return list(check(spoken("a", 1.0, language)))

    _, check = policy_checks(configuration(), demo, 10, [several, english])
    assert found(check, "en") == []
    assert found(check, "zh") == [("language", "the judge does not read 'zh', only en")]
    _, check = policy_checks(configuration(), demo, 10, [several])
    assert found(check, "zh") == [] and found(check, "de") != []
    unknown = policy_checks(configuration(), demo, 10, [JudgeConfig(kind="transformers", path="w")])
    assert len(unknown) == 1, "what it reads is known only once it is loaded"
    assert training_judges(configuration()) == [], "the default rewards ask none"


def test_texts_that_a_speech_model_cannot_read_or_fit(tmp_path: Path) -> None:
    family = load_family(write_demo_tts(tmp_path / "tts"))
    (check,) = policy_checks(configuration("engines.max_model_len=40"), family, 10, [])
    say = Utterance(id="a", audio="", text="turn on the light", prompt_audio="/v.wav")
    assert list(check(say)) == []
    ((key, message),) = check(replace(say, text="д"))
    assert key == "text" and "cannot be read by the model: 'д'" in message
    ((key, message),) = check(replace(say, text="turn on the light " * 10))
    assert key == "text" and "without its voice: " in message


def test_a_recording_that_vanishes_leaves_the_data_what_it_was(tmp_path: Path) -> None:
    """Between two executions of a run: its order and its saved positions stay good, and its prompts are rejected."""
    lines = []
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("over-limit", 2.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(round(seconds * 16_000), 0.1), 16_000)
        lines.append(json.dumps({"id": name, "audio": f"{name}.wav", "text": "hello", "language": "en"}))
    lines.append(json.dumps({"id": "no-text", "audio": "a.wav", "text": "", "language": "en"}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = configuration(
        f"data.train={tmp_path / 'm.jsonl'}", "data.on_bad=skip", "data.limits.max_seconds=1.5", "data.max_rejected=0"
    )
    before = load_manifests(config)
    assert [u.id for u in before["train"].utterances] == ["a", "b", "c"]
    assert without_unfit(config, before, {}) == (before, {})
    state = PromptSource(before["train"].utterances, 0, 2).state()

    (tmp_path / "b.wav").unlink()
    after = load_manifests(config)
    assert [u.id for u in after["train"].utterances] == ["a", "b", "c"] and len(after["train"].skipped) == 3
    PromptSource(after["train"].utterances, 0, 2).restore(state)
    _, unfit = without_unfit(config, after, {})
    assert list(unfit) == ["b"] and "no such file" in unfit["b"]
    rejections = Rejections(config.data, unfit)
    found = rejections.known("b")
    assert found is not None and rejections.known("a") is None
    rejections.judge(0, [found] * 300)  # known before the first step, and no reason to stop
    with pytest.raises(UserError, match="1 of the last 1 prompts could not be used"):
        rejections.judge(0, [BadUtterance("c", "no such file")])
