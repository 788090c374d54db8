"""What is found wrong with utterances before the first step, without reading a recording."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.config import RunConfig, load_config
from cluster.data.fitness import Check, policy_checks, training_judges, without_unfit
from cluster.data.prompts import PromptSource, load_manifests
from cluster.data.rejections import Rejections
from rewards.config import JudgeConfig
from speech.errors import InputError, Problem, UserError
from speech.families import ModelFamily, load_family
from speech.manifests import Manifest
from speech.manifests.load import Places
from speech.manifests.store import stored
from speech.records import BadUtterance, Utterance
from tests.demo_checkpoint import write_demo_checkpoint
from tests.speech.families.hearing_checkpoints import write_fun_asr_nano
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint
from tests.speech.families.tts_checkpoints import write_demo_tts


def configuration(*overrides: str) -> RunConfig:
    required = ["name=n", "model.path=m", "data.train=t", "engines.max_model_len=160", "sampling.max_new_tokens=10"]
    return load_config(None, [*required, *overrides])


def manifest(*utterances: Utterance, path: str = "m.jsonl") -> Manifest:
    places = Places([(path, 0)], np.arange(1, len(utterances) + 1))
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


@pytest.mark.parametrize("write", [write_demo_checkpoint, write_checkpoint])
def test_a_longer_recording_has_no_fewer_positions(write: object, tmp_path: Path) -> None:
    family = load_family(write(tmp_path / "m"))  # type: ignore[operator]
    assert isinstance(family, ModelFamily)
    positions = [family.audio_length(family.frames(samples)) for samples in range(0, 960_000, 40)]
    assert positions == sorted(positions)


@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from(["turn on", "打开", "д", ""]),
            st.sampled_from([None, "en", "zh"]),
            st.none() | st.floats(0.001, 40),
        ),
        min_size=1,
        max_size=12,
    ),
    max_model_len=st.integers(12, 160),
    chosen=st.sets(st.integers(0, 11)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_columns_tell_what_a_loop_over_all_records_finds(
    demo: ModelFamily,
    lines: list[tuple[str, str | None, float | None]],
    max_model_len: int,
    chosen: set[int],
) -> None:
    config = configuration(f"engines.max_model_len={max_model_len}")
    checks = policy_checks(config, demo, 10, [JudgeConfig(kind="demo", path="j", languages=["en"])])
    whole = manifest(*(replace(spoken(str(i), s, lang), text=text) for i, (text, lang, s) in enumerate(lines)))
    some = whole.at([i for i in range(len(lines)) if i not in chosen])
    if not len(some.utterances):
        return
    expected = [
        Problem(file, line, key, message)
        for utterance, (file, line) in zip(some.utterances, some.places, strict=True)
        for check in checks
        for key, message in check.problems(utterance)
    ]
    found: tuple[Problem, ...] = ()
    try:
        without_unfit(config, {"train": some}, {"train": checks})
    except InputError as error:
        found = error.problems
    assert list(found) == expected


def test_what_takes_each_record_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same lines and settings; anything else is looked at anew."""
    monkeypatch.setattr("cluster.data.passes.INDEXED_FROM", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, path = write_demo_tts(tmp_path / "tts"), str(tmp_path / "m.jsonl")
    read: list[str] = []

    def found(*texts: str, new_tokens: int = 10, **overrides: str) -> tuple[int, list[str]]:
        """How many texts the model's family was asked about, and the lines with problems."""
        family = load_family(folder)
        layout = family.layout  # type: ignore[attr-defined]
        monkeypatch.setattr(family, "layout", lambda text, *rest: read.append(text) or layout(text, *rest))
        config = configuration(*(f"engines.{key}={value}" for key, value in overrides.items()))
        said = [Utterance(id=str(i), audio="", text=text, prompt_audio="/v.wav") for i, text in enumerate(texts)]
        read.clear()
        with pytest.raises(InputError) as caught:
            without_unfit(
                config, {"train": manifest(*said, path=path)}, {"train": policy_checks(config, family, new_tokens, [])}
            )
        return len(read), [f"{p.line} {p.message}" for p in caught.value.problems]

    first = found("hello", "д", "you")
    assert first[0] == 3 and len(first[1]) == 1 and "2 " in first[1][0]
    assert found("hello", "д", "you") == (0, first[1])
    assert found("hello", "д", "д")[0] == 3, "another text"
    assert found("hello", "д", "you")[0] == 3, "one result for one manifest"
    assert found("hello", "д", "you", max_model_len="12")[0] == 3, "another setting"
    assert found("hello", "д", "you", new_tokens=11)[0] == 3
    assert found("hello", "д", "you") == (0, first[1]), "each setting has its own"
    assert found("hello", "д")[0] == 2 and found("hello", "д")[0] == 2, "a short manifest is read each time"
    for file in tmp_path.glob(".m.jsonl.*.checks"):
        file.write_bytes(file.read_bytes()[:-1] + b" ")
    assert found("hello", "д", "you") == (3, first[1]), "damaged"
    with (folder / "tokenizer_config.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    assert found("hello", "д", "you") == (3, first[1]), "another model"
    monkeypatch.setattr("cluster.data.passes.code_digest", lambda *patterns: "another release")
    assert found("hello", "д", "you") == (3, first[1])


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
    assert list(check.problems(spoken("a", fits))) == [] and list(check.problems(spoken("a", fits + 0.5))) != []


def test_keywords_in_the_prompt_count_among_its_positions(tmp_path: Path) -> None:
    folder = write_fun_asr_nano(tmp_path / "m")
    one = replace(spoken("a", 1.0), keywords=("hello",))
    many = replace(one, id="b", keywords=("hello",) * 30)
    order = replace(one, id="c", keywords=("<|im_end|>",))
    for hotwords, expected in ((False, []), (True, [("b", ["duration"]), ("c", ["keywords"])])):
        config = configuration(f"model.options={{hotwords: {str(hotwords).lower()}}}", "engines.max_model_len=250")
        family = load_family(folder, options={"hotwords": hotwords})
        (check,) = policy_checks(config, family, 10, [])
        found = [(u.id, [key for key, _ in check.problems(u)]) for u in (one, many, order)]
        assert [(name, keys) for name, keys in found if keys] == expected
        suspects = check.suspects(stored((one, many, order)))
        assert all(suspects[i] for i, (_, keys) in enumerate(found) if keys)


def test_languages_that_the_judges_do_not_read(demo: ModelFamily) -> None:
    english, several = JudgeConfig(kind="demo", path="j"), JudgeConfig(kind="demo", path="k", languages=["en", "zh"])

    def found(check: Check, language: str) -> list[tuple[str, str]]:
        return list(check.problems(spoken("a", 1.0, language)))

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
    assert list(check.problems(say)) == []
    ((key, message),) = check.problems(replace(say, text="д"))
    assert key == "text" and "cannot be read by the model: 'д'" in message
    ((key, message),) = check.problems(replace(say, text="turn on the light " * 10))
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
    state = PromptSource(before["train"].utterances, 0).state()

    (tmp_path / "b.wav").unlink()
    after = load_manifests(config)
    assert [u.id for u in after["train"].utterances] == ["a", "b", "c"] and len(after["train"].skipped) == 3
    PromptSource(after["train"].utterances, 0).restore(state)
    _, unfit = without_unfit(config, after, {})
    assert list(unfit) == ["b"] and "no such file" in unfit["b"]
    rejections = Rejections(config.data, unfit)
    found = rejections.known("b")
    assert found is not None and rejections.known("a") is None
    rejections.judge(0, [found] * 300)  # known before the first step, and no reason to stop
    with pytest.raises(UserError, match="1 of the last 1 prompts could not be used"):
        rejections.judge(0, [BadUtterance("c", "no such file")])
