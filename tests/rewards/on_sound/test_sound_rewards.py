from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.training.length_history import LengthHistory
from rewards.config import RewardConfig, SpeakerConfig
from rewards.listening.pinyin import pinyin_edits
from rewards.listening.pitch import semitone_std, voiced_f0
from rewards.listening.speaker import build_speaker_model
from rewards.on_sound.token_loops import looped_share
from rewards.pipeline import SoundPipeline
from rewards.registry import build_reward
from speech.audio import load_audio
from speech.errors import UserError
from speech.records import Group, Reward
from tests.rewards.listening.sound_fixtures import RATE, TapeCodec, recordings, sound_config, sound_group, tape_codec


@pytest.fixture(scope="module")
def tape() -> TapeCodec:
    return tape_codec(4)


def rewards(tape: TapeCodec, config: RewardConfig, group: Group) -> tuple[Reward, ...]:
    return SoundPipeline(config, lambda: tape).score([group])[0].rewards


def totals(tape: TapeCodec, config: RewardConfig, group: Group) -> list[float | None]:
    return [reward.total for reward in rewards(tape, config, group)]


# duration


def test_duration_against_the_history(tape: TapeCodec) -> None:
    group = sound_group([range(50), range(75), range(25), (), range(200)], past=(40, 50, 80))
    assert totals(tape, sound_config("duration"), group) == [0.0, -0.5, -0.5, -1.0, -1.0]
    assert totals(tape, sound_config("duration", cap=5.0), group)[-1] == -3.0
    details = rewards(tape, sound_config("duration"), group)[1].details
    assert details["duration/target"] == 50 and details["duration/seconds"] == 1.5
    assert details["duration/deviation"] == 0.5


def test_duration_at_the_first_visit_is_measured_against_what_ended(tape: TapeCodec) -> None:
    finish = ["stop", "stop", "length", "stop"]
    group = sound_group([range(40), range(60), range(300), ()], finish=finish)  # type: ignore[arg-type]
    assert totals(tape, sound_config("duration"), group) == [pytest.approx(-0.2), pytest.approx(-0.2), -1.0, -1.0]
    never = rewards(tape, sound_config("duration"), sound_group([range(50), ()], finish="length"))
    assert all("no reference length" in (r.invalid or "") for r in never)


def test_duration_from_a_rate(tape: TapeCodec) -> None:
    config = sound_config("duration", reference="rate", seconds_per_character=0.1)
    # "light on" has seven letters: 0.7 s, 35 tokens.
    assert totals(tape, config, sound_group([range(35), range(70)], text="Light, on!")) == [0.0, -1.0]
    for options in ({"reference": "rate"}, {"seconds_per_character": 0.1}, {"cap": 0.0}):
        with pytest.raises(UserError):
            build_reward("duration", options)


def test_history_is_bounded_keeps_the_first_and_survives_a_checkpoint() -> None:
    history = LengthHistory(limit=3)
    assert history.lengths("u") == ()
    history.add(sound_group([range(5), (), range(9)], finish=["stop", "stop", "length"]))
    history.add(sound_group([range(6), range(7), range(8)]))
    history.add(sound_group([range(1)], name="v"))
    assert history.lengths("u") == (5, 6, 7)
    resumed = LengthHistory(limit=3)
    resumed.load_state_dict(history.state_dict())
    history.add(sound_group([range(2)], name="v"))
    assert resumed.lengths("u") == (5, 6, 7) and resumed.lengths("v") == (1,)
    with pytest.raises(UserError, match="history of lengths"):
        resumed.load_state_dict({"other": 1})


# diversity


def glide(low: float, high: float, seconds: float = 1.0) -> np.ndarray:
    """A buzz whose F0 glides from low to high Hz, in equal semitones."""
    time = np.arange(int(seconds * RATE)) / RATE
    f0 = low * (high / low) ** (time / seconds)
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)


def test_f0_of_a_known_glide() -> None:
    pytest.importorskip("pyworld")
    f0 = voiced_f0(glide(100.0, 200.0), RATE)
    assert 80 <= len(f0) <= 101 and 99 < np.median(f0[:10]) < 112 and 180 < np.median(f0[-10:]) < 202
    # Twelve semitones passed at a constant pace: a uniform distribution, deviation 12/√12.
    assert semitone_std(f0) == pytest.approx(12 / np.sqrt(12), abs=0.35)
    assert semitone_std(voiced_f0(glide(150.0, 150.0), RATE)) < 0.1
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1
    assert len(voiced_f0(noise, RATE)) < 30
    assert semitone_std(np.array([100.0, 200.0])) == 0.0


def test_diversity_wants_other_tokens_and_moving_pitch() -> None:
    pytest.importorskip("pyworld")
    tape = TapeCodec([glide(120.0, 120.0), glide(100.0, 200.0)])
    flat, moving = tape.takes
    same = totals(tape, sound_config("diversity"), sound_group([flat, flat]))
    assert all(value is not None and value < 0.02 for value in same)
    scored = rewards(tape, sound_config("diversity"), sound_group([flat, moving, moving]))
    assert [r.details["diversity/edit_distance"] for r in scored] == [1.0, 0.5, 0.5]
    assert scored[1].details["diversity/f0_std"] > 3.0 > 0.2 > scored[0].details["diversity/f0_std"]
    alone = totals(tape, sound_config("diversity", f0=0.0), sound_group([flat]))
    assert alone == [0.0]


def test_garbage_earns_no_diversity(tape: TapeCodec) -> None:
    pytest.importorskip("pyworld")
    take = tape.takes[0]
    group = sound_group(
        [take, take, (), [tape.silence] * 9, tape.takes[1]], finish=["stop", "stop", "stop", "stop", "length"]
    )
    values = totals(tape, sound_config("diversity", f0=0.0), group)
    assert values == [0.0, 0.0, 0.0, 0.0, 0.0], "and nobody is diverse for being unlike it"


# speaker similarity


def test_speaker_similarity_knows_voices() -> None:
    pytest.importorskip("resemblyzer")
    utterances = recordings(14)
    assert utterances[0].speaker == utterances[13].speaker != utterances[1].speaker
    tape = TapeCodec([load_audio(utterances[i], RATE) for i in (0, 13, 1)])
    voice, same, other = tape.takes
    group = sound_group([same, other, voice, (), [tape.silence] * 40], voice=voice)
    values = totals(tape, sound_config("speaker_similarity"), group)
    assert None not in values
    assert values[2] == pytest.approx(1.0) and values[3:] == [0.0, 0.0]
    assert values[0] > values[1] + 0.05  # type: ignore[operator]
    scaled = totals(tape, sound_config("speaker_similarity", scale="unit"), group)
    assert scaled[0] == pytest.approx((1 + values[0]) / 2) and scaled[3] == 0.0  # type: ignore[operator]


def test_without_a_voice_nothing_is_similar_or_not(tape: TapeCodec) -> None:
    config = sound_config("speaker_similarity")
    without = rewards(tape, config, sound_group([tape.takes[0], ()]))
    assert [r.invalid for r in without] == ["speaker_similarity: the group has no prompt voice"] * 2
    pytest.importorskip("resemblyzer")
    silent = rewards(tape, config, sound_group([tape.takes[0]], voice=[tape.silence] * 40))
    assert silent[0].invalid == "speaker_similarity: the prompt voice is silent"
    broken = rewards(tape, config, sound_group([tape.takes[0]], voice=[tape.size]))
    assert "codec: ValueError" in (broken[0].invalid or "")


def test_resemblyzer_takes_very_short_and_very_quiet_waves() -> None:
    pytest.importorskip("resemblyzer")
    model = build_speaker_model(SpeakerConfig())
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    for wave in (noise[:50] * 0.1, noise * 0.002, noise * 0.5):
        embedding = model.embed([wave], 22_050)[0]
        assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)


def test_xvectors_of_a_tiny_wavlm(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8, 8),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(8, 8, 16),
        tdnn_kernel=(5, 3, 1),
        tdnn_dilation=(1, 2, 1),
        xvector_output_dim=12,
    )
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    model = build_speaker_model(SpeakerConfig("xvector", str(tmp_path)))
    wave = glide(100.0, 200.0)
    first, again, short = model.embed([wave, wave, wave[:100]], RATE)
    assert first.shape == (12,) and np.array_equal(first, again) and np.linalg.norm(short) == pytest.approx(1.0)
    with pytest.raises(UserError, match="cannot load"):
        build_speaker_model(SpeakerConfig("xvector", str(tmp_path / "none")))
    with pytest.raises(UserError, match="unknown speaker model 'ecapa'"):
        build_speaker_model(SpeakerConfig("ecapa"))


# quality


def test_quality_falls_with_noise_and_is_worst_for_silence() -> None:
    pytest.importorskip("speechmos")
    clean = load_audio(recordings(4)[1], RATE)
    noise = np.random.default_rng(0).normal(size=len(clean)).astype(np.float32)
    noisy = np.clip(clean + 0.1 * noise, -1, 1)
    tape = TapeCodec([clean, noisy])
    scored = rewards(tape, sound_config("quality"), sound_group([*tape.takes, ()]))
    values = [r.total for r in scored]
    assert None not in values and values[0] > values[1] > values[2] == 0.0  # type: ignore[operator]
    details = scored[0].details
    assert details["quality/overall"] == pytest.approx(1 + 4 * values[0])  # type: ignore[operator]
    assert {"quality/signal", "quality/background", "quality/p808"} <= set(details)


def test_quality_tiles_to_exactly_one_window_and_covers_a_long_wave() -> None:
    pytest.importorskip("speechmos")
    from rewards.listening.quality_model import DNSMOS, WINDOW

    model = DNSMOS(threads=1)
    lengths: list[int] = []
    inner = model._model
    model._model = lambda signal, rate, personal: lengths.append(len(signal)) or inner(signal, rate, personal)
    short = load_audio(recordings(1)[0], RATE)
    model.score(short, RATE)
    assert lengths == [WINDOW]
    model.score(np.tile(short, 6), RATE)  # 13.7 s
    assert lengths == [WINDOW] * 3


# trailing silence and loops


def test_trailing_silence(tape: TapeCodec) -> None:
    take, pause = list(tape.takes[0]), [tape.silence]
    own = rewards(tape, sound_config("trailing_silence"), sound_group([take]))[0].details["trailing_silence/seconds"]
    assert own < 0.5
    group = sound_group([take, take + pause * 75, take + pause * 500, pause * 10, (), take + pause * 100 + take])
    values = totals(tape, sound_config("trailing_silence"), group)
    assert values == [0.0, pytest.approx(-(1.5 + own - 0.5) / 2), -1.0, -1.0, -1.0, 0.0]


def test_token_loops(tape: TapeCodec) -> None:
    take = list(tape.takes[0])[:60]
    loop = take[:20] * 4
    group = sound_group([take, take + loop, [5] * 100, [5] * 20, (), take[:20] * 2])
    values = totals(tape, sound_config("token_loops"), group)
    # The loop repeats the take's beginning, but not right behind it.
    assert values == [0.0, pytest.approx(-80 / 140), -1.0, 0.0, 0.0, 0.0]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 6), st.integers(1, 12))
def test_looped_share_agrees_with_its_definition(tokens: list[int], longest: int, least: int) -> None:
    inside: set[int] = set()
    for period in range(1, longest + 1):
        for start in range(len(tokens)):
            end = start + period
            while end < len(tokens) and tokens[end] == tokens[end - period]:
                end += 1
            if end - start >= max(3 * period, least):
                inside |= set(range(start, end))
    expected = len(inside) / len(tokens) if tokens else 0.0
    assert looped_share(tuple(tokens), longest, least) == pytest.approx(expected)


# pinyin


def test_pinyin_forgives_homophones_and_tones_only() -> None:
    assert pinyin_edits("他买了书", "她卖了书", "zh").errors == 0
    assert pinyin_edits("他买了书", "他买了车", "zh").errors == 1
    assert pinyin_edits("打开WiFi", "打开wifi", "zh").rate == 0.0
    assert pinyin_edits("打开WiFi", "打开wif", "zh").deletions == 1
    assert pinyin_edits("二十一", "21", "zh").errors == 0
    assert pinyin_edits("turn on", "turn off", "en").rate == 0.5
