"""SNAC with tiny random weights in the form of its published checkpoint, and the places of its tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.config import RewardConfig, RewardItem
from rewards.pipeline import SoundPipeline
from speech.codecs import load_codec
from speech.codecs.snac import SnacCodec, _Network
from speech.errors import UserError
from tests.rewards.listening.sound_fixtures import sound_group

CONFIG = {
    "sampling_rate": 24_000,
    "encoder_dim": 4,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 16,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}


def write_snac(folder: Path) -> Path:
    """As on the hub: no model_type, and a pickle of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save(_Network(CONFIG).state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snac(tmp_path_factory.mktemp("snac"))


@pytest.fixture(scope="module")
def codec(folder: Path) -> SnacCodec:
    codec = load_codec(folder)
    assert isinstance(codec, SnacCodec)
    return codec


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 24_000))).astype(np.float32)


def frames(count: int, seed: int = 0) -> list[int]:
    codes = np.random.default_rng(seed).integers(16, size=(count, 7)) + 16 * np.arange(7)
    return codes.flatten().tolist()


def test_names_and_sizes_are_those_of_the_published_checkpoint() -> None:
    published = {**CONFIG, "encoder_dim": 48, "decoder_dim": 1024, "codebook_size": 4096}
    with torch.device("meta"):
        state = _Network(published).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 19_842_914
    assert {
        "encoder.block.0.parametrizations.weight.original0",
        "encoder.block.4.block.4.bias",
        "encoder.block.5.bias",
        "quantizer.quantizers.2.in_proj.parametrizations.weight.original1",
        "quantizer.quantizers.0.codebook.weight",
        "decoder.model.1.bias",
        "decoder.model.2.block.2.linear.parametrizations.weight.original0",
        "decoder.model.5.block.5.block.0.alpha",
        "decoder.model.6.alpha",
        "decoder.model.7.bias",
    } <= set(state)


def test_rates_and_sizes(codec: SnacCodec) -> None:
    assert (codec.sample_rate, codec.token_rate, codec.size) == (24_000, 82.03125, 7 * 16)


@pytest.mark.parametrize("samples", [1, 2_048, 2_049, 20_000])
def test_a_frame_is_seven_tokens_each_in_its_place(codec: SnacCodec, samples: int) -> None:
    [tokens] = codec.encode([speech(1)[:samples]])
    assert len(tokens) == 7 * -(-samples // 2_048)
    assert [token // 16 for token in tokens] == [place % 7 for place in range(len(tokens))]
    [wave] = codec.decode([tokens], [[]])
    assert wave.dtype == np.float32 and len(wave) == 2_048 * len(tokens) // 7
    assert 0 < np.abs(wave).max() <= 1


def test_an_entry_stands_before_the_finer_ones_that_it_covers(
    codec: SnacCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coarse, middle, fine, fine, middle, fine, fine."""
    heard: list[list[int]] = []
    decode = codec.model.decode

    def watch(codes: list[torch.Tensor]) -> torch.Tensor:
        heard.extend(code.tolist() for code in codes)
        return decode(codes)

    monkeypatch.setattr(codec.model, "decode", watch)
    codec.decode([[code + 16 * place for place, code in enumerate([1, 2, 3, 4, 5, 6, 7])]], [[]])
    assert heard == [[1], [2, 5], [3, 4, 6, 7]]


def test_results_do_not_depend_on_neighbours_or_on_the_time(codec: SnacCodec) -> None:
    waves = [speech(seconds, seed) for seed, seconds in enumerate((0.2, 0.5, 0.3))]
    assert codec.encode(waves) == [codec.encode([wave])[0] for wave in waves]
    tokens = [frames(3), frames(5, 1)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    together = codec.decode(tokens, [[], []])
    assert torch.equal(torch.random.get_rng_state(), before)
    for wave, ids in zip(together, tokens, strict=True):
        np.testing.assert_array_equal(wave, codec.decode([ids], [[]])[0])


def test_a_last_frame_that_lacks_tokens_is_dropped(codec: SnacCodec) -> None:
    tokens = frames(3)
    np.testing.assert_array_equal(codec.decode([tokens[:-1]], [[]])[0], codec.decode([tokens[:14]], [[]])[0])
    assert len(codec.decode([tokens[:6]], [[]])[0]) == len(codec.decode([[]], [[]])[0]) == 0


def test_a_token_out_of_its_place_makes_no_sound(codec: SnacCodec) -> None:
    tokens = frames(2)
    tokens[9] = 5
    with pytest.raises(
        ValueError, match=r"utterance 1: id 5 at position 9 belongs to place 0 of a frame, not to place 2"
    ):
        codec.decode([frames(1), tokens], [[], []])
    with pytest.raises(ValueError, match="id 112 at position 0 is outside 0 … 111"):
        codec.decode([[112]], [[]])


def test_a_sample_that_breaks_the_rule_has_no_reward_and_harms_no_other(codec: SnacCodec) -> None:
    """Fail closed: neither 0 nor a maximum, and the run goes on."""
    pipeline = SoundPipeline(RewardConfig([RewardItem("trailing_silence")]), lambda: codec)
    broken = [*frames(1), *frames(1)[::-1]]
    [group] = pipeline.score([sound_group([frames(4), broken, frames(2, 1)], text="word")])
    kept, lost, other = group.rewards
    assert kept.invalid is None and other.invalid is None
    assert lost.invalid is not None and "belongs to place 6 of a frame, not to place 0" in lost.invalid


def test_bad_waveforms(codec: SnacCodec) -> None:
    for wave, message in ((np.zeros(0, np.float32), "no samples"), (np.array([np.nan], np.float32), "not finite")):
        with pytest.raises(ValueError, match=message):
            codec.encode([wave])


def test_other_forms_and_damaged_folders_are_named(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for change, message in (
        ({"vq_strides": [8, 4, 2, 1], "attn_window_size": 32}, "only SNAC at 24 kHz"),
        ({"codebook_size": 8}, "cannot be loaded: .*size mismatch"),
        ({}, "cannot be loaded"),
    ):
        config.write_text(json.dumps({**CONFIG, **change}))
        (tmp_path / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes() if change else b"x")
        with pytest.raises(UserError, match=f"(?s){message}"):
            load_codec(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors or pytorch_model\.bin"):
        load_codec(tmp_path)
    config.write_text(json.dumps({key: value for key, value in CONFIG.items() if key != "codebook_dim"}))
    with pytest.raises(UserError, match="lacks codebook_dim"):
        load_codec(tmp_path)
    config.write_text("{}")
    with pytest.raises(UserError, match="lacks vq_strides"):
        load_codec(tmp_path, "snac")
    with pytest.raises(UserError, match=r"no codec for model_type None\. Known: .*snac"):
        load_codec(tmp_path)
