"""S3 tokens: made by an ONNX file, turned into sound by the user's own function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from rewards.config import RewardConfig, RewardItem
from rewards.pipeline import SoundPipeline
from speech.codecs import load_codec
from speech.codecs.s3 import CosyVoice2Codec, CosyVoice3Codec, S3Codec, log_mel
from speech.errors import UserError
from speech.runtime.codec_source import resolved_source, split_source
from tests.rewards.listening.sound_fixtures import sound_group
from tests.speech.codecs.onnx_files import write_s3_tokenizer

TONES = "tests.speech.codecs.tones"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As CosyVoice3's own: no config.json."""
    folder = tmp_path_factory.mktemp("cosyvoice3")
    write_s3_tokenizer(folder / "speech_tokenizer_v3.onnx")
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path) -> S3Codec:
    codec = load_codec(f"{TONES}:make@{folder}")
    assert isinstance(codec, CosyVoice3Codec)
    return codec


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 24_000))).astype(np.float32)


def test_which_codec_it_is_the_folder_says(folder: Path, tmp_path: Path) -> None:
    assert type(load_codec(folder)) is CosyVoice3Codec
    write_s3_tokenizer(tmp_path / "speech_tokenizer_v2.onnx")
    assert type(load_codec(tmp_path)) is CosyVoice2Codec
    with pytest.raises(UserError, match=r"lacks speech_tokenizer_v3\.onnx"):
        load_codec(tmp_path, "cosyvoice3")


def test_rates_and_sizes(codec: S3Codec) -> None:
    assert (codec.sample_rate, codec.token_rate, codec.size) == (24_000, 25.0, 6_561)


@pytest.mark.parametrize("samples", [1, 960, 961, 24_000, 40_000])
def test_a_token_is_40_ms(codec: S3Codec, samples: int) -> None:
    [tokens] = codec.encode([speech(2)[:samples]])
    assert len(tokens) == -(-samples // 960) and all(isinstance(token, int) and 0 <= token < 128 for token in tokens)
    [wave] = codec.decode([tokens], [[]])
    assert wave.dtype == np.float32 and len(wave) == 960 * len(tokens)


def test_features_are_whispers() -> None:
    """Its formula written out: a Hann window of 400, steps of 160, 128 Slaney bands, the loudest 80 dB."""
    wave = torch.from_numpy(speech(1)[:16_000])
    power = torch.stft(wave, 400, 160, window=torch.hann_window(400), return_complex=True)[:, :-1].abs() ** 2
    filters = mel_filter_bank(201, 128, 0.0, 8_000.0, 16_000, norm="slaney", mel_scale="slaney")
    bands = (torch.from_numpy(filters.T).float() @ power).clamp(min=1e-10).log10()
    expected = (torch.maximum(bands, bands.max() - 8) + 4) / 4
    found = log_mel(wave.numpy())
    assert found.shape == (128, 100)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_neighbours_change_nothing(codec: S3Codec) -> None:
    waves = [speech(seconds, seed) for seed, seconds in enumerate((0.4, 1.1))]
    together = codec.encode(waves)
    assert together == [codec.encode([wave])[0] for wave in waves]
    assert together[0] != together[1][: len(together[0])]


def test_the_users_function_is_given_tokens_and_voice(codec: S3Codec) -> None:
    alone, voiced, none = codec.decode([[0, 6_560], [0, 6_560], []], [[], [3, 1], [3]])
    assert len(alone) == 2 * 960 and len(none) == 0
    np.testing.assert_allclose(alone, 2 * voiced, atol=1e-6)
    assert np.diff(alone[:960] > 0).sum() == 16  # of zero, by 200 Hz in 40 ms
    with pytest.raises(ValueError, match="utterance 0: id 6561 at position 1 is outside 0 … 6560"):
        codec.decode([[0, 6_561]], [[]])


def test_rewards_listen_to_what_the_users_function_made(folder: Path) -> None:
    config = RewardConfig([RewardItem(f"{TONES}:brightness"), RewardItem("trailing_silence")])
    pipeline = SoundPipeline(config, lambda: load_codec(f"{TONES}:make@{folder}"))
    pipeline.load()
    [group] = pipeline.score([sound_group([[0] * 50, [6_560] * 50], text="word")])
    low, high = (reward.parts["brightness"] for reward in group.rewards)
    assert low == pytest.approx(2 * 0.2, abs=0.02) and high == pytest.approx(2 * (0.2 + 6.56 / 4), abs=0.1)
    assert all(reward.invalid is None for reward in group.rewards)


def test_without_a_function_it_only_encodes(folder: Path) -> None:
    codec = load_codec(folder)
    assert codec.encode([speech(0.1)])
    with pytest.raises(UserError, match=r"model\.codec=my_module:make@FOLDER"):
        codec.decode([[1]], [[]])
    pipeline = SoundPipeline(RewardConfig([RewardItem("trailing_silence")]), lambda: load_codec(folder))
    with pytest.raises(UserError, match="nothing here turns tokens"):  # before the first sample, not for each of them
        pipeline.load()


def test_what_the_user_named_is_checked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made a int of .*, not a function token2wav"):
        load_codec(f"{TONES}:make_number@{folder}")
    with pytest.raises(UserError, match=r"has no 'maek'; did you mean 'make'"):
        load_codec(f"{TONES}:maek@{folder}")
    with pytest.raises(ValueError, match=r"shape \(2880,\) of 5 tokens, not \(4800,\)"):
        load_codec(f"{TONES}:make_short@{folder}").decode([[1] * 5], [[]])
    with pytest.raises(UserError, match="of 'demo', which needs no token2wav"):
        load_codec(f"{TONES}:make@assets/tts_codec")
    assert load_codec(f"{TONES}:OwnCodec@assets/tts_codec").name == "own"
    with pytest.raises(UserError, match=r"codec folder .* does not exist"):
        load_codec(f"{TONES}:make@{tmp_path / 'none'}")


def test_damaged_and_unfit_files(tmp_path: Path) -> None:
    (tmp_path / "speech_tokenizer_v2.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"speech_tokenizer_v2\.onnx: onnxruntime cannot read it"):
        load_codec(tmp_path).encode([speech(0.1)])
    write_s3_tokenizer(tmp_path / "speech_tokenizer_v2.onnx", mels_per_token=2)
    codec = load_codec(tmp_path)
    with pytest.raises(ValueError, match=r"made 6 tokens of 0\.12 s"):
        codec.encode([speech(0.1)])
    with pytest.raises(ValueError, match="waveform 1 is longer than 30 s"):
        codec.encode([speech(0.1), speech(30.1)])


def test_a_source_is_a_folder_or_the_users_own_and_a_folder() -> None:
    assert split_source("my.module:make@a/b@c") == ("my.module:make", "a/b@c")
    for plain in ("assets/tts_codec", "/a/b:c", "a@b"):
        assert split_source(plain) == (None, plain)
    assert resolved_source("m:f@x") == f"m:f@{Path('x').resolve()}"
    assert resolved_source("x") == str(Path("x").resolve())
