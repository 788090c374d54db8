"""The codecs of transformers behind our seam, with tiny random weights in the real checkpoint format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DacConfig, MimiConfig, NeuCodecConfig, PreTrainedModel, Xcodec2Config
from transformers.models.dac import DacModel
from transformers.models.mimi import MimiModel
from transformers.models.neucodec import NeuCodecModel
from transformers.models.xcodec2 import Xcodec2Model

from speech.codecs import Codec, load_codec
from speech.errors import UserError

SEMANTIC = {
    "model_type": "wav2vec2-bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "feature_projection_input_dim": 160,
    "output_hidden_size": 16,
}
FSQ = {
    "hidden_size": 64,  # the decoder's 32 groups need two channels each to normalise a single token
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "encoder_hidden_size": 4,
    "quantization_dim": 80,
    "quantization_levels": [4, 4, 4],
    "semantic_model_config": SEMANTIC,
}


def _models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    models = {
        "dac": DacModel(
            DacConfig(
                encoder_hidden_size=4,
                decoder_hidden_size=64,
                downsampling_ratios=[2, 4, 5, 8],
                n_codebooks=3,
                codebook_size=16,
            )
        ),
        "mimi": MimiModel(
            MimiConfig(
                hidden_size=16,
                num_filters=4,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=32,
                codebook_size=16,
                codebook_dim=8,
                vector_quantization_hidden_dimension=8,
                num_quantizers=4,
                upsample_groups=16,
            )
        ),
        "xcodec2": Xcodec2Model(Xcodec2Config(**FSQ)),
        "neucodec": NeuCodecModel(NeuCodecConfig(**FSQ)),
    }
    for name, buffer in models["mimi"].named_buffers():
        if name.endswith("embed_sum"):  # the codebooks, which start as zeros: every code would sound the same
            buffer.normal_()
    return models


EXPECTED = {  # Hz, tokens a second, ids
    "dac": (16_000, 3 * 50.0, 48),
    "mimi": (24_000, 4 * 12.5, 64),
    "xcodec2": (16_000, 50.0, 64),
    "neucodec": (24_000, 50.0, 64),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codecs")
    for name, model in _models().items():
        model.save_pretrained(root / name)
    return {name: root / name for name in EXPECTED}


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def codec(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Codec:
    return load_codec(folders[request.param])


def _speech(codec: Codec, seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * codec.sample_rate))).astype(np.float32)


def test_rates_and_sizes(codec: Codec) -> None:
    assert (codec.sample_rate, codec.token_rate, codec.size) == EXPECTED[codec.name]


def test_round_trip_keeps_time(codec: Codec) -> None:
    seconds = 0.8
    [tokens] = codec.encode([_speech(codec, seconds)])
    assert len(tokens) == round(seconds * codec.token_rate)
    assert all(isinstance(token, int) and 0 <= token < codec.size for token in tokens)
    [wave] = codec.decode([tokens], [[]])
    assert wave.dtype == np.float32 and len(wave) == round(seconds * codec.sample_rate)
    assert np.abs(wave).max() <= 1


@pytest.mark.parametrize("samples", [1, 100, 2_000])
def test_short_waveforms_are_padded_to_whole_frames(codec: Codec, samples: int) -> None:
    [tokens] = codec.encode([np.full(samples, 0.1, np.float32)])
    codebooks = {"dac": 3, "mimi": 4}.get(codec.name, 1)
    assert len(tokens) == codebooks * int(np.ceil(samples / codec.sample_rate * codec.token_rate / codebooks))


def test_neighbours_change_nothing(codec: Codec) -> None:
    waves = [_speech(codec, seconds, seed) for seed, seconds in enumerate((0.4, 1.1, 0.7))]
    together = codec.encode(waves)
    assert together == [codec.encode([wave])[0] for wave in waves]
    decoded = codec.decode(together, [[]] * 3)
    for wave, tokens in zip(decoded, together, strict=True):
        np.testing.assert_array_equal(wave, codec.decode([tokens], [[]])[0])


def test_any_ids_decode(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    for length in (0, 1, 7, 40):
        [wave] = codec.decode([rng.integers(codec.size, size=length).tolist()], [[]])
        assert np.isfinite(wave).all()
    assert len(codec.decode([[]], [[]])[0]) == 0


def test_decode_reads_the_tokens(codec: Codec) -> None:
    ids = [3] * 24
    other = [*ids[:12], *[9] * 12]
    assert not np.allclose(codec.decode([ids], [[]])[0], codec.decode([other], [[]])[0], atol=1e-7)


@torch.no_grad()
def test_codes_and_sound_are_those_of_transformers(codec: Codec) -> None:
    """Only their order in one stream is ours."""
    model, codebooks = codec.model, {"dac": 3, "mimi": 4}.get(codec.name, 1)  # type: ignore[attr-defined]
    entries = codec.size // codebooks
    wave = _speech(codec, 0.8)  # whole frames
    [tokens] = codec.encode([wave])
    codes = torch.tensor(tokens).view(-1, codebooks).T % entries
    if codebooks > 1:  # the others also read features (`_semantic`)
        assert torch.equal(codes, model.encode(torch.from_numpy(wave)[None, None]).audio_codes[0])
    sound = model.decode(audio_codes=codes[None]).audio_values.flatten().clamp(-1, 1).numpy()
    [ours] = codec.decode([tokens], [[]])
    shared = min(len(ours), len(sound))
    assert len(ours) == len(wave) and abs(len(sound) - len(ours)) < codec.sample_rate / codec.token_rate * codebooks
    np.testing.assert_array_equal(ours[:shared], sound[:shared])


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_out_of_range(codec: Codec, bad: int) -> None:
    with pytest.raises(ValueError, match=f"utterance 1: id {bad} at position 2"):
        codec.decode([[0], [0, 1, bad]], [[], []])


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0, np.float32), "holds no samples"),
        (np.array([0.0, np.nan], np.float32), "not finite"),
        (np.zeros((2, 100), np.float32), "one channel"),
    ],
)
def test_bad_waveforms(codec: Codec, wave: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"waveform 0 .*{message}"):
        codec.encode([wave])


@pytest.mark.parametrize("name", ["dac", "mimi"])
def test_codebooks_are_interleaved_with_offsets(folders: dict[str, Path], name: str) -> None:
    codec = load_codec(folders[name])
    [tokens] = codec.encode([_speech(codec, 0.5)])
    codebooks = codec.size // 16
    assert [token // 16 for token in tokens] == [i % codebooks for i in range(len(tokens))]


def test_fewer_codebooks(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("dac", "mimi"):
        full = load_codec(folders[name])
        for file in folders[name].iterdir():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        (tmp_path / name / "codec.json").write_text(json.dumps({"codebooks": 2}))
        codec = load_codec(tmp_path / name)
        wave = _speech(codec, 0.4)
        kept = [token for token in full.encode([wave])[0] if token < 32]
        assert codec.size == 32 and codec.encode([wave])[0] == kept
        assert len(codec.decode([kept], [[]])[0]) == round(0.4 * codec.sample_rate)


def test_bad_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["dac"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for text, message in (
        ('{"codebooks": 9}', "not a number from 1 to 3"),
        ('{"codebook": 2}', "codebook"),
        ("[", "JSON"),
    ):
        (tmp_path / "codec.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_codec(tmp_path)


def test_missing_and_foreign_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folders["dac"] / "config.json").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        load_codec(tmp_path)
    with pytest.raises(UserError, match="model_type is 'dac', not 'mimi'"):
        load_codec(folders["dac"], "mimi")
    (tmp_path / "model.safetensors").write_bytes((folders["mimi"] / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="weights are missing"):
        load_codec(tmp_path)
