"""Prompts of speech: one codec pass per distinct voice, and every bad voice named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from rollout.config import EncoderConfig
from rollout.encoders import recordings
from rollout.encoders.voices import PreparedVoice, VoiceEncoder, VoiceMode
from speech.audio import load_audio
from speech.codecs.base import Codec
from speech.errors import UserError
from speech.families.demo.speaking import DemoTTSFamily
from speech.records import BadUtterance, Utterance
from tests.speech.families.tts_checkpoints import write_demo_tts

RATE, FRAME, LEVELS = 16_000, 800, 20


class LoudnessCodec(Codec):
    """Says of each 50 ms how loud they are, in 20 steps: a codec that a test can predict."""

    name = "demo"
    sample_rate = RATE
    token_rate = RATE / FRAME
    size = LEVELS

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[list[int]] = []

    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        self.batches.append([len(wave) for wave in waves])
        return [levels(wave) for wave in waves]

    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.repeat(np.asarray(ids, dtype=np.float32) / LEVELS, FRAME) for ids in tokens]


def levels(wave: np.ndarray) -> list[int]:
    frames = np.abs(wave[: len(wave) // FRAME * FRAME]).reshape(-1, FRAME).max(axis=1, initial=0.0)
    return [min(LEVELS - 1, int(peak * LEVELS)) for peak in frames]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> DemoTTSFamily:
    return DemoTTSFamily(write_demo_tts(tmp_path_factory.mktemp("tts") / "model", codec_size=LEVELS))


@pytest.fixture
def codec(tmp_path: Path) -> LoudnessCodec:
    return LoudnessCodec(tmp_path)


@pytest.fixture
def encoder(family: DemoTTSFamily, codec: LoudnessCodec) -> VoiceEncoder:
    return VoiceEncoder(family, codec, EncoderConfig(batch_seconds=2.0), load_audio)


def write(path: Path, amplitude: float, seconds: float = 0.5, rate: int = RATE) -> str:
    wave = amplitude * np.sin(2 * np.pi * 200 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, wave.astype(np.float32), rate, subtype="FLOAT")
    return str(path)


def utterance(name: str, prompt_audio: str | None, text: str = "turn on the light", audio: str = "") -> Utterance:
    return Utterance(id=name, audio=audio, text=text, prompt_audio=prompt_audio)


def prepared(encoder: VoiceEncoder, utterances: Sequence[Utterance], mode: VoiceMode = "prompt") -> list[PreparedVoice]:
    """Of utterances that are all good."""
    found = encoder.encode(utterances, mode)
    assert not any(isinstance(item, BadUtterance) for item in found), found
    return found  # type: ignore[return-value]


def test_a_prompt_holds_the_voice_and_no_audio_positions(
    encoder: VoiceEncoder, family: DemoTTSFamily, tmp_path: Path
) -> None:
    (item,) = prepared(encoder, [utterance("u", write(tmp_path / "a.wav", 0.62))])
    assert item.encoded.voice_tokens == (12,) * 10
    assert item.encoded.layout == family.layout("turn on the light", "", [12] * 10)
    assert item.encoded.embeddings is not None and item.encoded.embeddings.shape == (0, 64)
    assert item.encoded.seconds == 0.5
    assert item.encoded.peak == pytest.approx(0.62, abs=1e-3)
    assert item.target_ids == ()


def test_each_distinct_voice_is_encoded_once_and_in_batches(
    encoder: VoiceEncoder, codec: LoudnessCodec, tmp_path: Path
) -> None:
    a, b, c = (write(tmp_path / f"{s}.wav", 0.5, s) for s in (0.5, 1.0, 1.5))
    batch = [utterance(str(i), voice) for i, voice in enumerate([b, a, a, c, b])]
    first = prepared(encoder, batch)
    assert codec.batches == [[8_000, 16_000], [24_000]]  # by length, at most 2 s together with padding
    assert encoder.encoded_total == 3
    assert [len(item.encoded.voice_tokens) for item in first] == [20, 10, 10, 30, 20]
    assert [item.encoded.voice_tokens for item in prepared(encoder, batch)] == [
        item.encoded.voice_tokens for item in first
    ]
    assert encoder.encoded_total == 3


def test_the_cache_forgets_the_least_recently_used(
    encoder: VoiceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "CACHE_TOKENS", 25)
    a, b, c = (utterance(name, write(tmp_path / f"{name}.wav", 0.5)) for name in "abc")
    encoder.encode([a, b])
    encoder.encode([a])
    encoder.encode([c])  # makes 30 tokens: b goes
    assert encoder.encoded_total == 3
    encoder.encode([a, c])
    assert encoder.encoded_total == 3
    encoder.encode([b])
    assert encoder.encoded_total == 4


def test_another_rate_is_resampled(encoder: VoiceEncoder, tmp_path: Path) -> None:
    same, other = write(tmp_path / "a.wav", 0.62), write(tmp_path / "b.wav", 0.62, rate=44_100)
    one, two = prepared(encoder, [utterance("a", same), utterance("b", other)])
    assert one.encoded.voice_tokens[1:-1] == two.encoded.voice_tokens[1:-1]  # the filter rings at both ends
    assert two.encoded.seconds == 0.5


def test_targets_are_the_tokens_of_the_recording_and_its_segment(
    encoder: VoiceEncoder, family: DemoTTSFamily, tmp_path: Path
) -> None:
    voice, recording = write(tmp_path / "a.wav", 0.3), write(tmp_path / "b.wav", 0.77, 1.0)
    whole = utterance("u", voice, audio=recording)
    part = replace(whole, id="v", start=0.5, duration=0.25)
    items = prepared(encoder, [whole, part], "target")
    assert [family.speech_tokens(item.target_ids) for item in items] == [[15] * 20, [15] * 5]
    assert all(item.target_ids[-1] in family.stop_token_ids for item in items)


def test_every_bad_utterance_is_named_at_once(encoder: VoiceEncoder, tmp_path: Path) -> None:
    good = write(tmp_path / "good.wav", 0.5)
    silent, short = write(tmp_path / "silent.wav", 0.0), write(tmp_path / "short.wav", 0.5, 0.01)
    corrupt = tmp_path / "corrupt.wav"
    corrupt.write_bytes(b"RIFF and nothing else")
    found = encoder.encode(
        [
            utterance("fine", good),
            utterance("voiceless", None),
            utterance("gone", str(tmp_path / "gone.wav")),
            utterance("corrupt", str(corrupt)),
            utterance("silent", silent),
            utterance("silent too", silent),
            utterance("short", short),
            utterance("empty", good, text=" "),
            utterance("russian", good, text="да"),
            utterance("both", silent, text=" "),
            utterance("fine too", good),
        ],
    )
    assert isinstance(found[0], PreparedVoice) and isinstance(found[-1], PreparedVoice), "the others keep their results"
    bad = {item.id: item.reason for item in found if isinstance(item, BadUtterance)}
    assert bad["voiceless"] == "prompt_audio: missing: speech needs a prompt voice"
    assert bad["gone"] == f"prompt_audio: {tmp_path}/gone.wav: no such file"
    assert bad["corrupt"].startswith(f"prompt_audio: {tmp_path}/corrupt.wav: cannot be decoded")
    assert bad["silent"] == bad["silent too"] == f"prompt_audio: {silent}: is silent: there is no voice to encode"
    assert bad["short"] == f"prompt_audio: {short}: is too short: the codec makes no token of it"
    assert bad["empty"] == "text: is empty"
    assert bad["russian"].startswith("text: cannot be read by the model: 'д'")
    assert bad["both"] == f"{bad['silent']}; text: is empty"
    assert len(bad) == len(found) - 2


def test_a_recording_that_the_codec_cannot_take_spoils_no_other(
    encoder: VoiceEncoder, codec: LoudnessCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = codec.encode

    def fails_on_the_long(waves: Sequence[np.ndarray]) -> list[list[int]]:
        if any(len(wave) > RATE for wave in waves):
            raise torch.OutOfMemoryError("tried to allocate 90 GiB")
        return encode(waves)

    monkeypatch.setattr(codec, "encode", fails_on_the_long)
    one, long, two = (write(tmp_path / f"{s}.wav", 0.5, s) for s in (0.5, 1.1, 0.6))
    first, bad, second = encoder.encode([utterance("a", one), utterance("b", long), utterance("c", two)])
    assert isinstance(first, PreparedVoice) and isinstance(second, PreparedVoice)
    assert bad == BadUtterance("b", "prompt_audio: OutOfMemoryError: tried to allocate 90 GiB")


def test_the_model_reads_the_instruction_before_the_text(
    encoder: VoiceEncoder, family: DemoTTSFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    layout = family.layout
    monkeypatch.setattr(family, "layout", lambda text, *rest: read.append(text) or layout("hello", *rest))
    encoder.encode([replace(utterance("u", write(tmp_path / "a.wav", 0.5)), text="hello", instruction="softly")])
    assert read == ["softly<|endofprompt|>hello"]


def test_supervised_training_needs_a_recording(encoder: VoiceEncoder, tmp_path: Path) -> None:
    (found,) = encoder.encode([utterance("u", write(tmp_path / "a.wav", 0.5))], "target")
    assert found == BadUtterance("u", "audio: missing: SFT needs a recording of the text")


def test_model_and_codec_must_belong_together(
    family: DemoTTSFamily, codec: LoudnessCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec.size = 21
    with pytest.raises(UserError, match=r"has 20 speech tokens, .* has 21"):
        VoiceEncoder(family, codec, EncoderConfig(), load_audio)
    monkeypatch.setattr(LoudnessCodec, "name", "mimi")
    with pytest.raises(UserError, match="speaks the tokens of 'demo', not of the codec 'mimi'"):
        VoiceEncoder(family, codec, EncoderConfig(), load_audio)


def test_the_actor_stores_what_engine_and_controller_need(
    family: DemoTTSFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class behind the actor, with the codec's registry in the test's own hands."""
    import speech.codecs
    from rollout.actors import VoiceActor

    monkeypatch.setattr(speech.codecs, "load_codec", lambda path, name: LoudnessCodec(Path(path)))
    actor = VoiceActor.__ray_metadata__.modified_class(str(family.path), None, str(tmp_path), EncoderConfig())
    spoken = utterance("u", write(tmp_path / "a.wav", 0.62), audio=write(tmp_path / "b.wav", 0.77))
    answer, encoded = actor.encode([spoken], "target")
    [summary] = answer.values
    assert summary.layout == encoded.layout and summary.seconds == encoded.seconds == 0.5
    assert encoded.voice_tokens == (12,) * 10
    assert family.speech_tokens(summary.target_ids) == [15] * 10
    assert answer.recordings == 2
    again, _ = actor.encode([spoken], "target")
    assert (again.values, again.recordings) == ([summary], 0)


def test_an_actor_needs_a_family_of_its_kind(family: DemoTTSFamily, demo_checkpoint: Path, tmp_path: Path) -> None:
    from rollout.actors import EncoderActor, VoiceActor

    with pytest.raises(UserError, match="'demo' does not speak"):
        VoiceActor.__ray_metadata__.modified_class(str(demo_checkpoint), None, str(tmp_path), EncoderConfig())
    with pytest.raises(UserError, match="'demo_tts' has no audio encoder"):
        EncoderActor.__ray_metadata__.modified_class(str(family.path), None, EncoderConfig())
