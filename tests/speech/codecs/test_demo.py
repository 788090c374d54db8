"""The embedded codec: vocoder, pitch, and the shipped weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.codecs import CODECS, load_codec
from speech.codecs.demo import pitch, vocoder
from speech.codecs.demo.codec import START_LEVEL, DemoCodec
from speech.errors import UserError

ASSETS = Path(__file__).parents[3] / "assets"
RATE = vocoder.SAMPLE_RATE
ENTRIES = 1024  # of each of the two codebooks


@pytest.fixture(scope="module")
def codec() -> DemoCodec:
    codec = load_codec(ASSETS / "tts_codec")
    assert isinstance(codec, DemoCodec)
    return codec


def _vowel(hz: float, seconds: float = 0.6, formants: tuple[float, ...] = (700, 1200, 2600)) -> np.ndarray:
    """Harmonics under a few resonances: a steady voice."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = np.zeros_like(time)
    for harmonic in np.arange(hz, 7000, hz):
        gain = sum(np.exp(-(((harmonic - formant) / 200) ** 2)) for formant in formants) + 0.01
        wave += gain * np.cos(2 * np.pi * harmonic * time + harmonic)
    return (0.2 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.mark.parametrize("hz", [80.0, 120.0, 200.0, 310.0])
def test_pitch_of_a_vowel(hz: float) -> None:
    wave = _vowel(hz)
    found, strength = pitch.track(wave, RATE, vocoder.HOP, len(wave) // vocoder.HOP)
    np.testing.assert_allclose(found[5:-5], hz, rtol=0.03)
    assert strength[5:-5].min() > 0.7


def test_noise_and_silence_have_no_pitch() -> None:
    rng = np.random.default_rng(0)
    for wave in (0.1 * rng.standard_normal(RATE), np.zeros(RATE), np.full(RATE, 0.3)):
        _, strength = pitch.track(wave, RATE, vocoder.HOP, 100)
        assert np.median(strength) < 0.5


@pytest.mark.parametrize("hz", [90.0, 130.0, 270.0])
def test_pulses_have_the_pitch_and_unit_power(hz: float) -> None:
    train = vocoder.pulses(torch.full((1, 100), hz))[0]
    assert train.square().mean().item() == pytest.approx(1, rel=0.05)
    found, _ = pitch.track(train.numpy(), RATE, vocoder.HOP, 100)
    np.testing.assert_allclose(found[5:-5], hz, rtol=0.03)


@pytest.mark.parametrize("voiced", [True, False])
def test_envelope_measures_what_synthesise_was_given(voiced: bool) -> None:
    frames, low = 200, -20.0
    shape = (-3 + 2 * torch.cos(torch.linspace(0, 6, vocoder.BANDS))).expand(1, frames, -1)
    silent = torch.full_like(shape, low)
    hz = torch.full((1, frames), 140.0)
    wave = vocoder.synthesise(hz, *((shape, silent) if voiced else (silent, shape)))
    measured = vocoder.envelope(wave, hz)[0, 10:-10].mean(0)
    # The lowest bands hold no harmonic, the highest fade out.
    difference = (measured - 2 * shape[0, 0])[3:-2]
    assert difference.abs().mean() < 0.35 and difference.abs().max() < 1.0


def test_synthesis_is_differentiable_in_its_filters() -> None:
    filters = torch.full((2, 1, 20, vocoder.BANDS), -2.0, requires_grad=True)
    vocoder.synthesise(torch.full((1, 20), 150.0), filters[0], filters[1]).square().sum().backward()
    assert (
        filters.grad is not None
        and torch.isfinite(filters.grad).all()
        and (filters.grad.abs().sum((1, 2, 3)) > 0).all()
    )


def test_vowels_come_back(codec: DemoCodec) -> None:
    """Pitch within a semitone and a half, and the three strongest bands of vowels that no training utterance holds."""
    for hz in (110.0, 200.0):
        for formants in ((300.0, 2300.0, 3000.0), (700.0, 1100.0, 2500.0)):
            wave = _vowel(hz, formants=formants)
            [decoded] = codec.decode(codec.encode([wave]), [[]])
            frames = len(decoded) // vocoder.HOP
            found, _ = pitch.track(decoded, RATE, vocoder.HOP, frames)
            assert abs(12 * np.log2(np.median(found) / hz)) < 1.5
            curve = torch.full((1, frames), hz)
            before, after = (
                vocoder.envelope(torch.from_numpy(np.resize(sound, frames * vocoder.HOP))[None], curve)[0, 8:-8].mean(0)
                for sound in (wave, decoded)
            )
            assert np.corrcoef(before, after)[0, 1] > 0.7


def test_the_tokens_say_how_long(codec: DemoCodec) -> None:
    for samples in (1, 1279, 1280, 1281, 16_000):
        [tokens] = codec.encode([np.full(samples, 0.1, np.float32)])
        stretches = -(-samples // 1280)
        assert len(tokens) == 5 * stretches == round(stretches * 0.08 * codec.token_rate)
        [wave] = codec.decode([tokens], [[]])
        assert len(wave) == 1280 * stretches and wave.dtype == np.float32


def test_pattern_of_tokens(codec: DemoCodec) -> None:
    """Pitch, then sound and detail twice, each in its own range of ids."""
    [tokens] = codec.encode([_vowel(150.0)])
    kinds = [min(token // ENTRIES, 2) for token in tokens]
    assert kinds == [2, 0, 1, 0, 1] * (len(tokens) // 5)


def _decode(codec: DemoCodec, *tokens: int) -> np.ndarray:
    return codec.decode([tokens], [[]])[0]


def test_what_tokens_mean_in_any_order(codec: DemoCodec) -> None:
    pitch_token, detail = 2 * ENTRIES + 9, ENTRIES + 7
    same = np.testing.assert_array_equal
    same(_decode(codec, detail, 5, 6), _decode(codec, 5, 6))  # nothing to refine yet
    same(_decode(codec, 5, ENTRIES + 3, detail), _decode(codec, 5, detail))  # the last detail counts
    same(_decode(codec, 5, pitch_token, detail), _decode(codec, 5, detail))  # pitch is for what follows
    same(_decode(codec, 2 * ENTRIES + START_LEVEL, 5, 6), _decode(codec, 5, 6))
    assert not np.allclose(_decode(codec, pitch_token, 5, 6), _decode(codec, 5, 6), atol=1e-4)
    assert not np.allclose(_decode(codec, 5, detail), _decode(codec, 5), atol=1e-4)
    assert len(_decode(codec, detail, pitch_token)) == 0
    assert len(_decode(codec, 1, 1, 1)) == 3 * 640


def test_pitch_tokens_move_the_pitch(codec: DemoCodec) -> None:
    [tokens] = codec.encode([_vowel(150.0, 1.2)])
    heard = []
    for shift in (-6, 0, 6):
        moved = [token + shift if token >= 2 * ENTRIES else token for token in tokens]
        wave = _decode(codec, *moved)
        heard.append(np.median(pitch.track(wave, RATE, vocoder.HOP, len(wave) // vocoder.HOP)[0]))
    assert heard[0] < 0.85 * heard[1] and heard[2] > 1.15 * heard[1]


def test_silence_comes_back_as_silence(codec: DemoCodec) -> None:
    [wave] = codec.decode(codec.encode([np.zeros(RATE, np.float32)]), [[]])
    assert np.sqrt(np.mean(wave**2)) < 0.01


def test_level_does_not_matter(codec: DemoCodec) -> None:
    wave = _vowel(150.0)
    quiet, loud = codec.encode([0.1 * wave, 4 * wave])
    agreeing = np.mean(np.array(quiet) == np.array(loud))
    assert agreeing > 0.9


@settings(max_examples=25)
@given(st.lists(st.integers(0, 2 * ENTRIES + 31), max_size=120))
def test_any_tokens_decode_to_a_bounded_wave(codec: DemoCodec, tokens: list[int]) -> None:
    [wave] = codec.decode([tokens], [[]])
    assert len(wave) == 640 * sum(token < ENTRIES for token in tokens)
    assert np.isfinite(wave).all() and np.abs(wave).max(initial=0) <= 1


def test_neighbours_and_voices_change_nothing(codec: DemoCodec) -> None:
    waves = [_vowel(100.0, 0.3), _vowel(220.0, 0.9), _vowel(160.0, 0.5)]
    together = codec.encode(waves)
    assert together == [codec.encode([wave])[0] for wave in waves]
    for tokens, wave in zip(together, codec.decode(together, [[], [1], [2, 3]]), strict=True):
        np.testing.assert_array_equal(wave, codec.decode([tokens], [[]])[0])


def test_features_are_of_sound_and_detail_and_not_of_pitch(codec: DemoCodec) -> None:
    features = codec.features()
    known = np.isfinite(features).all(1)
    assert features.shape == (codec.size, codec.model.config.code_dim)
    assert known[: codec.size - codec.model.config.pitches].all()
    assert not known[codec.size - codec.model.config.pitches :].any()


def test_bad_input(codec: DemoCodec) -> None:
    assert len(codec.decode([[]], [[]])[0]) == 0 and codec.decode([], []) == [] and codec.encode([]) == []
    for wave, message in (
        (np.zeros(0), "no samples"),
        (np.array([np.inf]), "not finite"),
        (np.zeros((1, 9)), "one channel"),
    ):
        with pytest.raises(ValueError, match=f"waveform 1 .*{message}"):
            codec.encode([_vowel(100.0), wave])
    for bad in (-1, codec.size):
        with pytest.raises(ValueError, match=f"utterance 0: id {bad} at position 1"):
            codec.decode([[0, bad]], [[]])


def test_registry_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'xcodec2'"):
        load_codec(tmp_path, "xcodec")
    with pytest.raises(UserError, match="does not exist"):
        load_codec(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"lacks config\.json"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(UserError, match=r"no codec for model_type 'qwen3'\. Known: demo"):
        load_codec(tmp_path)
    with pytest.raises(UserError, match="model_type is not 'speechrl_demo_codec'"):
        load_codec(tmp_path, "demo")
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json: (not valid JSON|holds a list)"):
            load_codec(tmp_path)
    assert all(name == codec.name for name, codec in CODECS.items())


def test_damaged_weights(tmp_path: Path) -> None:
    config = json.loads((ASSETS / "tts_codec" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        load_codec(tmp_path)
    shutil.copyfile(ASSETS / "tts_codec" / "model.safetensors", tmp_path / "model.safetensors")
    for changed, message in (({"channels": 64}, "does not fit"), ({"codes": 0}, "positive"), ({"depth": 3}, "exactly")):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(UserError, match=message):
            load_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="does not fit"):
        load_codec(tmp_path)


def test_decoding_first_does_not_spoil_training() -> None:
    """What the vocoder keeps between calls is made by whoever asks first, and that may be in inference mode."""
    script = (
        "import torch\n"
        "from speech.codecs.demo.vocoder import BANDS, synthesise\n"
        "hz, levels = torch.full((1, 8), 120.0), torch.zeros(1, 8, BANDS)\n"
        "with torch.inference_mode():\n"
        "    synthesise(hz, levels, levels)\n"
        "levels.requires_grad_()\n"
        "synthesise(hz, levels, levels).sum().backward()\n"
        "assert levels.grad is not None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
