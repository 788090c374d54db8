"""What only Fun-ASR-Nano has: Kaldi's filter banks without torchaudio, and the language in the prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.fun_asr_nano.feature_extraction_fun_asr_nano import FunAsrNanoFeatureExtractor
from transformers.models.fun_asr_nano.processing_fun_asr_nano import FunAsrNanoProcessor

from rewards.on_text.keyword import Keyword
from speech.errors import InputError, UserError
from speech.families import load_family
from speech.families.hearing.fun_asr_nano import DEFAULTS, FunAsrNanoAudioEncoder, FunAsrNanoFamily
from speech.records import Utterance
from tests.speech.families.hearing_checkpoints import wave, write_fun_asr_nano

POSITIONS = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=2049))


def kaldi_banks(sound: np.ndarray) -> torch.Tensor:
    """Kaldi's definition (feat/feature-window.cc, feat/mel-computations.cc), written out: (frames, 80)."""
    frames = torch.from_numpy(sound).double().unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = frames * torch.hamming_window(400, periodic=False, dtype=torch.float64)
    power = torch.fft.rfft(frames, 512).abs().square()

    def mel(hertz: torch.Tensor) -> torch.Tensor:
        return 1127 * (1 + hertz / 700).log()

    low, high = mel(torch.tensor([20.0, 8000.0], dtype=torch.float64))
    edges = torch.linspace(float(low), float(high), 82, dtype=torch.float64)
    at = mel(torch.arange(257, dtype=torch.float64) * 16_000 / 512)[:, None]
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    weights = torch.minimum((at - left) / (middle - left), (right - at) / (right - middle)).clamp(min=0)
    return (power @ weights).clamp(min=torch.finfo(torch.float32).eps).log().float()


@pytest.mark.parametrize("seconds", [0.025, 0.2, 1.37, 3.0])
def test_features_are_those_of_the_native_extractor(seconds: float) -> None:
    sound = wave(seconds)
    stacking = SimpleNamespace(num_frames_lfr=7, stride_lfr=6)
    expected = FunAsrNanoFeatureExtractor._apply_lfr(stacking, kaldi_banks(sound))
    ours = FunAsrNanoAudioEncoder(POSITIONS, DEFAULTS).features(sound)  # type: ignore[arg-type]
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-3  # of logarithms between -16 and 5


def test_features_equal_torchaudios() -> None:
    pytest.importorskip("torchaudio")
    expected = FunAsrNanoFeatureExtractor()(wave(1.37))["input_features"][0]
    ours = FunAsrNanoAudioEncoder(POSITIONS, DEFAULTS).features(wave(1.37))  # type: ignore[arg-type]
    assert (ours - expected).abs().max() <= 1e-3


def test_a_recording_with_more_rows_than_positions_is_refused() -> None:
    with pytest.raises(InputError, match=r"lasts 130\.0 s, and the model hears 122\.88 s at most"):
        FunAsrNanoAudioEncoder(POSITIONS, DEFAULTS).features(wave(130.0))  # type: ignore[arg-type]


def test_a_language_can_be_named_in_the_prompt(tmp_path: Path) -> None:
    folder = write_fun_asr_nano(tmp_path / "model")

    def prompt(language: str | None, **options: object) -> str:
        family = load_family(folder, options=options)
        assert isinstance(family, FunAsrNanoFamily)
        return family.prompt_text(Utterance(id="1", audio="/a.wav", text="x", language=language))

    assert "语音转写：<|object_ref_start|>" in prompt("en")
    assert "语音转写成英文：<|object_ref_start|>" in prompt("en", force_language=True)
    assert prompt("de", force_language=True) == prompt(None, force_language=True) == prompt("en")
    assert "语音转写成中文：<|object_ref_start|>" in prompt(None, force_language="zh")
    with pytest.raises(UserError, match="force_language is 'de'; give true, false or one of zh, en, ja"):
        prompt("de", force_language="de")


def asked(family: FunAsrNanoFamily, **request: object) -> list[int]:
    """Prompt ids of transformers' own processor, one audio position."""
    processor = FunAsrNanoProcessor.__new__(FunAsrNanoProcessor)  # whose feature extractor needs torchaudio

    def template(conversations: list[object], **_: object) -> list[int]:
        text = family.tokenizer.apply_chat_template(conversations[0], tokenize=False, add_generation_prompt=True)
        return family.tokenizer.encode(text, add_special_tokens=False)

    processor.apply_chat_template = template
    return processor.apply_transcription_request(np.zeros(1600, np.float32), **request)


def test_keywords_stand_in_the_prompt_as_the_processor_puts_them(tmp_path: Path) -> None:
    folder = write_fun_asr_nano(tmp_path / "model")
    plain = load_family(folder)
    family = load_family(folder, options={"hotwords": True, "force_language": True})
    assert isinstance(plain, FunAsrNanoFamily) and isinstance(family, FunAsrNanoFamily)
    said = Utterance(id="1", audio="/a.wav", text="call Ada in Köln", language="en", keywords=("Ada", "Köln"))
    assert list(family.layout(said, 1).token_ids) == asked(family, keywords=["Ada", "Köln"], language="en")
    assert "热词列表：[Ada, Köln]" in family.prompt_text(said)
    # Without keywords, and without the option, the prompt is what it was.
    none = replace(said, keywords=())
    assert list(family.layout(none, 1).token_ids) == asked(family, language="en")
    assert list(plain.layout(said, 1).token_ids) == list(plain.layout(none, 1).token_ids) == asked(plain)


def test_the_reward_and_the_prompt_have_the_same_keywords(tmp_path: Path) -> None:
    family = load_family(write_fun_asr_nano(tmp_path / "model"), options={"hotwords": True})
    assert isinstance(family, FunAsrNanoFamily)
    said = Utterance(id="1", audio="/a.wav", text="call Ada now", keywords=("Ada",))
    other = replace(said, keywords=("now",))
    missed = "call Eva now"
    assert Keyword()._score(said.text, missed, said.keywords, None).value == 0.0
    assert Keyword()._score(other.text, missed, other.keywords, None).value == 1.0
    assert "[Ada]" in family.prompt_text(said) and "[now]" in family.prompt_text(other)


def test_keywords_that_cannot_stand_in_a_prompt_are_refused(tmp_path: Path) -> None:
    folder = write_fun_asr_nano(tmp_path / "model")
    family = load_family(folder, options={"hotwords": True})
    assert isinstance(family, FunAsrNanoFamily)
    with pytest.raises(InputError, match=r"keywords: holds the control token <\|im_end\|>"):
        family.layout(Utterance(id="1", audio="/a.wav", text="x", keywords=("<|im_end|>",)), 1)
    with pytest.raises(UserError, match="hotwords is 'yes'; give true or false"):
        load_family(folder, options={"hotwords": "yes"})
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("'keywords'", "'none'"), encoding="utf-8")
    with pytest.raises(UserError, match="its chat template has no place for keywords"):
        load_family(folder, options={"hotwords": True})
