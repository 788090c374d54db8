from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rewards.compose import RewardComposition
from rewards.config import JudgeConfig, RewardConfig, RewardItem, SoundConfig
from rewards.listening.group import Failure, Sound, SoundBatch, SoundGroup
from rewards.listening.judge import Judge, Transcript, Wave, check_second_judge
from rewards.pipeline import SoundPipeline, wave_path
from rewards.registry import PartScore, on_sound
from rewards.report import SoundReporter
from speech.errors import UserError
from speech.records import Group
from tests.demo_checkpoint import write_demo_checkpoint
from tests.rewards.listening.sound_fixtures import (
    ASR_DEMO,
    FRAME,
    RATE,
    TapeCodec,
    sound_config,
    sound_group,
    tape_codec,
)

SPOKEN = SoundConfig(judge=JudgeConfig("demo", str(ASR_DEMO)), batch=4)


@pytest.fixture(scope="module")
def tape() -> TapeCodec:
    return tape_codec(3)


class LengthJudge(Judge):
    """Writes one word for each second, and breaks on a wave of exactly 30 frames."""

    kind = "length"
    states_likelihood = True

    def __init__(self) -> None:
        super().__init__(JudgeConfig("length", "-"), 1)
        self.batches: list[tuple[str, int]] = []

    def transcribe(
        self, waves: Sequence[Wave], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        self.batches.append((language, len(waves)))
        if any(len(wave) == 30 * 320 for wave in waves):
            raise RuntimeError("the judge is broken")
        assert references is None or len(references) == len(waves)
        nll = None if references is None else 1.5
        return [Transcript("word " * round(len(wave) / sample_rate), nll) for wave in waves]


def with_judge(pipeline: SoundPipeline) -> LengthJudge:
    judge = LengthJudge()
    pipeline.models._judges["judge"] = judge
    return judge


@on_sound("judge")
def heard(group: SoundGroup) -> list[PartScore]:
    """A user's own reward on sound: the words that the judge wrote."""
    return [
        PartScore(value=float(len(t.text.split()))) if isinstance(t, Transcript) else PartScore(invalid=t.reason)
        for t in group.transcripts()
    ]


def test_one_decoding_and_one_reading_serve_all_groups_and_rewards(tape: TapeCodec) -> None:
    config = RewardConfig([RewardItem("tts_accuracy"), RewardItem(f"{__name__}:heard"), RewardItem("no_stop")])
    config.sound = SPOKEN
    pipeline = SoundPipeline(config, lambda: tape)
    judge = with_judge(pipeline)
    tape.calls.clear()
    groups = [
        sound_group([range(50), range(100)], text="word word", voice=tape.takes[2], name="a"),
        sound_group([range(50), (), range(100)], text="word", voice=tape.takes[2], finish="length", name="b"),
    ]
    scored = pipeline.score(groups)
    assert tape.calls == [4, 1], "five samples in batches of four, and the voice that nobody asked for is not decoded"
    assert sorted(judge.batches) == [("en", 4)], "the empty sample is not read, and no sample twice"
    parts = [[(r.parts["tts_accuracy"], r.parts["heard"], r.parts["no_stop"]) for r in g.rewards] for g in scored]
    assert parts == [[(0.5, 1.0, 0.0), (1.0, 2.0, 0.0)], [(1.0, 1.0, -1.0), (0.0, 0.0, -1.0), (0.0, 2.0, -1.0)]]
    assert [g.prompt.id for g in scored] == ["0/a", "0/b"]
    assert set(pipeline.seconds) == {"decode", "judge", "total"}


@on_sound()
def voice_seconds(group: SoundGroup) -> list[PartScore]:
    """A user's own reward on sound: how long the prompt voice is."""
    assert isinstance(group.voice, Sound)
    return [PartScore(value=group.voice.seconds)] * len(group.sounds)


@on_sound()
def voice_peak(group: SoundGroup) -> list[PartScore]:
    assert isinstance(group.voice, Sound)
    return [PartScore(value=float(np.abs(group.voice.wave).max()))] * len(group.sounds)


def test_prompt_voices_are_decoded_once_for_all_who_ask(tape: TapeCodec) -> None:
    names = [f"{__name__}:voice_seconds", f"{__name__}:voice_peak"]
    pipeline = SoundPipeline(sound_config(*names), lambda: tape)
    groups = [
        sound_group([range(9)], voice=range(50), name="a"),
        sound_group([range(9)], voice=range(100), name="b"),
        sound_group([range(9)], voice=range(50), name="c"),
    ]
    for _ in range(2):
        tape.calls.clear()
        assert [g.rewards[0].parts["voice_seconds"] for g in pipeline.score(groups)] == [1.0, 2.0, 1.0]
        assert tape.calls == [3, 2], "the samples of a call, and its two voices"


def test_what_no_reward_listens_to_is_not_decoded(tape: TapeCodec, tmp_path: Path) -> None:
    built: list[TapeCodec] = []

    def codec() -> TapeCodec:
        built.append(tape)
        return tape

    tape.calls.clear()
    group = sound_group([range(9), ()], voice=range(50), finish="length")
    pipeline = SoundPipeline(sound_config("no_stop", "accuracy"), codec)
    pipeline.load()
    (scored,) = pipeline.score([group])
    assert scored == RewardComposition(sound_config("no_stop", "accuracy")).score(group)
    assert not built and not tape.calls and set(pipeline.seconds) == {"total"}
    pipeline.score([group], tmp_path)
    assert tape.calls == [2] and len(list(tmp_path.glob("*.wav"))) == 2, "a wave that is to be written is decoded"


def test_a_codec_that_does_not_load_is_no_fault_of_the_samples() -> None:
    def codec() -> TapeCodec:
        raise UserError("codec folder /none does not exist")

    pipeline = SoundPipeline(sound_config("token_loops"), codec)
    with pytest.raises(UserError, match="/none"):
        pipeline.load()
    with pytest.raises(UserError, match="/none"):
        pipeline.score([sound_group([range(9)])])


def test_the_judge_states_the_likelihood_only_to_those_who_ask(tape: TapeCodec) -> None:
    """It costs a pass of the judge's model; a reward that does not ask for it has the reading that was made with it."""
    for shape, likelihood in [("one_minus", None), ("harmonic", 1.5)]:
        config = RewardConfig([RewardItem("tts_accuracy", options={"shape": shape}), RewardItem(f"{__name__}:heard")])
        config.sound = SPOKEN
        pipeline = SoundPipeline(config, lambda: tape)
        judge = with_judge(pipeline)
        (group,) = pipeline.score([sound_group([range(50), range(100)], text="word")])
        assert [r.details.get("tts_accuracy/nll") for r in group.rewards] == [likelihood] * 2
        assert [r.parts["heard"] for r in group.rewards] == [1.0, 2.0]
        assert judge.batches == [("en", 2)]


def test_a_judge_error_costs_the_sample_and_not_its_batch(tape: TapeCodec) -> None:
    pipeline = SoundPipeline(sound_config("tts_accuracy", sound=SPOKEN), lambda: tape)
    with_judge(pipeline)
    scored = pipeline.score([sound_group([range(50), range(30), range(60)], text="word")])
    assert [r.valid for r in scored[0].rewards] == [True, False, True]
    assert scored[0].rewards[1].invalid == "tts_accuracy: judge: RuntimeError: the judge is broken"


def test_a_sample_that_does_not_decode_is_invalid_and_alone(tape: TapeCodec) -> None:
    pipeline = SoundPipeline(sound_config("token_loops", "trailing_silence", "duration"), lambda: tape)
    scored = pipeline.score([sound_group([range(50), [0, tape.size], range(50)])])
    assert [r.valid for r in scored[0].rewards] == [True, False, True]
    assert (scored[0].rewards[1].invalid or "").startswith("token_loops: codec: ValueError: a token outside")


def test_languages_go_to_the_judge_apart_and_unknown_ones_are_invalid(tape: TapeCodec) -> None:
    pipeline = SoundPipeline(sound_config("tts_accuracy", sound=SPOKEN), lambda: tape)
    judge = with_judge(pipeline)
    groups = [
        sound_group([range(50)], text="word", name="en"),
        sound_group([range(50)], text="打开灯", language=None, name="zh"),
    ]
    assert all(r.valid for g in pipeline.score(groups) for r in g.rewards)
    assert sorted(judge.batches) == [("en", 1), ("zh", 1)]
    judge.languages = frozenset({"en"})
    english, chinese = pipeline.score(groups)
    assert english.rewards[0].valid
    assert chinese.rewards[0].invalid == "tts_accuracy: judge does not read 'zh', only en"


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [("Привет, мир", "en", "script CYRILLIC"), ("♪ ♫", "en", "nothing to say"), ("", None, "nothing to say")],
)
def test_a_text_that_nobody_can_score_is_invalid(tape: TapeCodec, text: str, language: str, reason: str) -> None:
    pipeline = SoundPipeline(sound_config("tts_accuracy", sound=SPOKEN), lambda: tape)
    judge = with_judge(pipeline)
    rewards = pipeline.score([sound_group([range(50), ()], text=text, language=language)])[0].rewards
    assert all(reason in (r.invalid or "") for r in rewards)
    assert not judge.batches


def test_silence_is_a_real_bad_score_and_never_reaches_the_judge(tape: TapeCodec) -> None:
    for shape, worst in [("one_minus", 0.0), ("tanh", 1 - math.tanh(3)), ("harmonic", 0.0)]:
        pipeline = SoundPipeline(sound_config("tts_accuracy", sound=SPOKEN, shape=shape), lambda: tape)
        judge = with_judge(pipeline)
        rewards = pipeline.score([sound_group([(), [tape.silence] * 50], text="word")])[0].rewards
        assert [r.total for r in rewards] == [pytest.approx(worst)] * 2
        assert not judge.batches


def test_waves_are_written_where_wave_path_says(tape: TapeCodec, tmp_path: Path) -> None:
    pipeline = SoundPipeline(sound_config("token_loops"), lambda: tape)
    group = sound_group([tape.takes[0], ()], name="de/1")
    pipeline.score([group], tmp_path / "waves")
    wave, rate = soundfile.read(wave_path(tmp_path / "waves", group, 0), dtype="float32")
    expected = tape.decode([tape.takes[0]], [()])[0]
    assert rate == tape.sample_rate and np.abs(wave - expected).max() < 1e-4
    assert len(soundfile.read(wave_path(tmp_path / "waves", group, 1))[0]) == 0


def test_waves_of_any_id_can_be_written(tape: TapeCodec, tmp_path: Path) -> None:
    """Ids of other corpora are sentences, paths or addresses; a name holds 255 bytes."""
    pipeline = SoundPipeline(sound_config("token_loops"), lambda: tape)
    ids = ["x" * 250, "x" * 249 + "y", "灯" * 30, "灯" * 29 + "光", "a/../../b", "..", "line\nbreak", "é" * 400]
    groups = [sound_group([tape.takes[0]], name=name) for name in ids]
    pipeline.score(groups, tmp_path / "waves")
    paths = [wave_path(tmp_path / "waves", group, 0) for group in groups]
    assert sorted(path.name for path in (tmp_path / "waves").iterdir()) == sorted({path.name for path in paths})
    assert len(set(paths)) == len(ids)
    assert max(len(path.name.encode()) for path in paths) < 143
    # Names that always fitted are what they were.
    assert wave_path(tmp_path, sound_group([()], name="de/1"), 0).name == "de%2F1-e0-0.wav"


def test_rewards_on_sound_without_sound_are_invalid_and_others_work() -> None:
    composition = RewardComposition(sound_config("no_stop", "token_loops"))
    rewards = composition.score(sound_group([range(5)])).rewards
    assert rewards[0].parts == {"no_stop": 0.0}
    assert rewards[0].invalid == "token_loops: ValueError: it scores sound, and this group was not decoded"


def test_configuration_errors_are_found_before_anything_is_loaded(tape: TapeCodec) -> None:
    def fails(match: str, sound: SoundConfig) -> None:
        with pytest.raises(UserError, match=match):
            SoundPipeline(sound_config("tts_accuracy", "speaker_similarity", sound=sound), lambda: tape)

    fails("rewards.sound.judge.kind is empty", SoundConfig())
    fails("unknown judge 'whisper'", SoundConfig(judge=JudgeConfig("whisper", "x")))
    fails("rewards.sound.judge.path is empty", SoundConfig(judge=JudgeConfig("demo")))
    fails("threads are at least 1", SoundConfig(judge=JudgeConfig("demo", "x"), threads=0))
    SoundPipeline(sound_config("token_loops"), lambda: tape)  # no reward that needs a judge, no judge


def test_the_second_judge_is_another_model(tmp_path: Path) -> None:
    first = JudgeConfig("demo", str(ASR_DEMO))
    with pytest.raises(UserError, match=r"second_judge\.kind is empty"):
        check_second_judge(SoundConfig(judge=first))
    (tmp_path / "link").symlink_to(ASR_DEMO)
    for again in (first, JudgeConfig("transformers", str(ASR_DEMO)), JudgeConfig("demo", str(tmp_path / "link"))):
        with pytest.raises(UserError, match="the training judge again"):
            check_second_judge(SoundConfig(judge=first, second_judge=again))
    check_second_judge(SoundConfig(judge=first, second_judge=JudgeConfig("faster_whisper", "whisper-tiny.en")))


def test_a_group_keeps_everything_but_its_rewards(tape: TapeCodec) -> None:
    group = sound_group([range(5)], voice=range(5), past=(7, 8))
    scored: Group = SoundPipeline(sound_config("token_loops"), lambda: tape).score([group])[0]
    assert (scored.prompt, scored.trajectories, scored.voice_tokens) == (
        group.prompt,
        group.trajectories,
        group.voice_tokens,
    )
    assert len(scored.rewards) == 1


def test_the_actor_scores_sound_and_says_what_it_cost() -> None:
    from rewards.actor import RewardActor

    actor = RewardActor(sound_config("token_loops", "no_stop"), partial(tape_codec, 1))
    for _ in range(2):
        scored = actor.score([sound_group([[5] * 100, ()], finish="length")])
        assert [r.total for r in scored.rewards[0]] == [-2.0, -1.0]
        assert set(scored.seconds) == {"decode", "total"} and 0 < scored.seconds["total"] < 5

    def unwanted() -> TapeCodec:
        raise AssertionError("rewards on records load no codec")

    quiet = RewardActor(sound_config("no_stop"), unwanted).score([sound_group([()])])
    assert quiet.rewards[0][0].total == 0.0 and not quiet.seconds
    records = RewardActor(RewardConfig([RewardItem("no_stop")])).score([sound_group([()])])
    assert records.rewards[0][0].total == 0.0 and not records.seconds


def test_a_report_measures_quality_where_it_is_asked_for_and_can_be(
    tape: TapeCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNSMOS itself is a stand-in here, as its package may be missing; what the report makes of it is not."""
    pytest.importorskip("pyworld")
    pytest.importorskip("resemblyzer")
    other = JudgeConfig("demo", str(write_demo_checkpoint(tmp_path / "other")))
    config = RewardConfig([RewardItem("no_stop")], sound=SoundConfig(judge=SPOKEN.judge, second_judge=other))
    monkeypatch.setattr("rewards.report.dnsmos_installed", lambda: False)
    [[without]] = SoundReporter(config, lambda: tape, quality=True).report([sound_group([tape.takes[0]])])
    assert without.dnsmos is None and not without.problems, "the package is not there"
    monkeypatch.setattr("rewards.report.dnsmos_installed", lambda: True)
    measured = [{"overall": 3.5, "p808": 3.0}, None, Failure("quality: broken")]
    monkeypatch.setattr(SoundBatch, "qualities", lambda self: measured)
    reporter = SoundReporter(config, lambda: tape, quality=True)
    [[good, silent, failed]] = reporter.report([sound_group([tape.takes[0], (), tape.takes[0]])])
    assert (good.dnsmos, silent.dnsmos, failed.dnsmos) == (3.5, 1.0, None)
    assert failed.problems == ("quality: broken",) and not good.problems


def test_a_report_has_both_judges_and_says_what_is_missing(tape: TapeCodec, tmp_path: Path) -> None:
    pytest.importorskip("pyworld")
    pytest.importorskip("resemblyzer")
    same = RewardConfig([RewardItem("no_stop")], sound=SPOKEN)
    with pytest.raises(UserError, match="second_judge"):
        SoundReporter(same, lambda: tape)
    other = write_demo_checkpoint(tmp_path / "other")
    sound = SoundConfig(judge=SPOKEN.judge, second_judge=JudgeConfig("demo", str(other)))
    reporter = SoundReporter(RewardConfig([RewardItem("no_stop")], sound=sound), lambda: tape)
    reporter.load()
    take = tape.takes[1]
    [[wrong]] = reporter.report([sound_group([take], text="quite another text")])
    assert wrong.heard and wrong.edits is not None and wrong.edits.errors > 0
    # What the judge hears is taken for the text, so that the test does not depend on how well it hears.
    voiced = sound_group([take, ()], text=wrong.heard, voice=take, finish=["stop", "length"])
    unread = sound_group([tape.takes[1], [tape.size]], text="打开灯", language="zh", name="zh")
    [recording] = tape.decode([take], [()])
    soundfile.write(tmp_path / "voice.wav", recording, tape.sample_rate, subtype="FLOAT")
    utterance = dataclasses.replace(voiced.prompt.utterance, prompt_audio=str(tmp_path / "voice.wav"))
    voiced = dataclasses.replace(voiced, prompt=dataclasses.replace(voiced.prompt, utterance=utterance))
    [first, empty], [chinese, broken] = reporter.report([voiced, unread], tmp_path / "waves")
    assert first.edits is not None and first.edits.rate == 0.0 and first.heard == first.text
    assert first.edits_second is not None and first.edits_second.rate > 0.5
    assert first.speaker_similarity == pytest.approx(1.0) and first.finished and not first.problems
    assert first.speaker_similarity_original == pytest.approx(1.0, abs=0.02), "it is resampled"
    assert empty.speaker_similarity_original == 0.0 and chinese.speaker_similarity_original is None
    assert first.f0_std is not None and first.f0_std > 0 and first.seconds == pytest.approx(len(take) * FRAME / RATE)
    assert first.f0_mean is not None and 60 <= first.f0_mean <= 600 and empty.f0_mean is None
    assert first.dnsmos is None and empty.dnsmos is None, "not asked for"
    assert first.wave is not None and len(soundfile.read(first.wave)[0]) > 0
    assert empty.heard == "" and empty.edits is not None and empty.edits.rate == 1.0
    assert (empty.speaker_similarity, empty.seconds, empty.f0_std, empty.finished) == (0.0, 0.0, 0.0, False)
    assert chinese.edits is None and chinese.speaker_similarity is None and chinese.seconds is not None
    assert any("does not read 'zh'" in problem for problem in chinese.problems)
    assert broken.seconds is None and broken.heard is None and "codec: ValueError" in broken.problems[0]
