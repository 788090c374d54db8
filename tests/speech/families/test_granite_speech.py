"""What only Granite-Speech has: a spectrogram without torchaudio, and a LoRA adapter beside the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from speech.errors import UserError
from speech.families.checkpoint import LowRank
from speech.families.hearing.granite_speech import MELS, GraniteSpeechConformer, GraniteSpeechFamily
from tests.speech.families.hearing_checkpoints import wave, write_granite_speech

ADAPTED = ("layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_granite_speech(tmp_path / "model")


def adapt(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Write an adapter as peft stores it, and return what it adds to each weight."""
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "use_rslora": False, **options}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"has_lora_adapter": True}))
    tensors, added = {}, {}
    language_model = GraniteSpeechFamily.load_language_model(_plain(folder))
    for place, module in enumerate(ADAPTED):
        generator = torch.Generator().manual_seed(place)
        weight = language_model.get_parameter(f"model.{module}.weight")
        a = torch.randn(4, weight.shape[1], generator=generator)
        b = torch.randn(weight.shape[0], 4, generator=generator)
        tensors |= {
            f"base_model.model.language_model.model.{module}.lora_{k}.weight": t for k, t in (("A", a), ("B", b))
        }
        added[f"model.{module}.weight"] = (6 / 4) * (b @ a)
    save_file(tensors, folder / "adapter_model.safetensors")
    return added


def _plain(folder: Path) -> GraniteSpeechFamily:
    (folder / "adapter_model.safetensors").touch()
    family = GraniteSpeechFamily(folder)
    family.model_config.has_lora_adapter = False
    return family


def test_features_are_the_log_mel_of_the_native_extractor() -> None:
    """Against transformers' own transform in numpy, with the settings that the native extractor gives to torchaudio."""
    sound = wave(1.37)
    mel = spectrogram(
        sound,
        window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        mel_filters=mel_filter_bank(257, 80, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk"),
        mel_floor=1e-10,
        log_mel="log10",
    ).T
    mel = np.maximum(mel, mel.max() - 8.0) / 4 + 1
    expected = mel[: len(mel) // 2 * 2].reshape(-1, 160)
    ours = GraniteSpeechConformer(torch.nn.Module(), MELS).features(sound).numpy()  # type: ignore[arg-type]
    assert ours.shape == expected.shape == (len(sound) // 160 // 2 + (len(sound) // 160) % 2, 160)
    assert np.abs(ours - expected).max() <= 1e-4


def test_features_equal_torchaudios() -> None:
    pytest.importorskip("torchaudio")
    from transformers import GraniteSpeechFeatureExtractor

    sound = wave(1.37)
    expected = GraniteSpeechFeatureExtractor()(sound)["input_features"][0]
    ours = GraniteSpeechConformer(torch.nn.Module(), MELS).features(sound)  # type: ignore[arg-type]
    assert (ours - expected).abs().max() <= 1e-4


def test_an_adapter_is_merged_into_the_language_model(folder: Path, tmp_path: Path) -> None:
    plain = dict(_plain(folder).load_language_model().named_parameters())
    added = adapt(folder)
    family = GraniteSpeechFamily(folder)
    for name, parameter in family.load_language_model().named_parameters():
        torch.testing.assert_close(parameter, plain[name] + added.get(name, 0))
    family.write_engine_model(tmp_path / "engine")
    engine = AutoModelForCausalLM.from_pretrained(tmp_path / "engine")
    assert all(torch.equal(p, family.load_language_model().get_parameter(n)) for n, p in engine.named_parameters())


def test_what_lora_learns_is_added_to_the_adapter(folder: Path, tmp_path: Path) -> None:
    adapted = set(adapt(folder))
    family = GraniteSpeechFamily(folder)
    before = dict(family.load_language_model().named_parameters())
    generator = torch.Generator().manual_seed(5)
    names = [name for name in before if "mlp" in name or "q_proj" in name]
    assert adapted & set(names) and adapted - set(names) and set(names) - adapted
    new = {}
    for name in names:
        rows, columns = before[name].shape
        a, b = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
        new[name] = LowRank(a, b, 0.5)
    family.export(tmp_path / "new", {"language_model": new})
    for name, parameter in GraniteSpeechFamily(tmp_path / "new").load_language_model().named_parameters():
        expected = before[name] + 0.5 * new[name].b @ new[name].a if name in new else before[name]
        torch.testing.assert_close(parameter, expected)


def test_an_export_of_the_language_model_has_no_adapter(folder: Path, tmp_path: Path) -> None:
    adapt(folder)
    family = GraniteSpeechFamily(folder)
    trained = {name: p + 0.01 for name, p in family.load_language_model().named_parameters()}
    family.export(tmp_path / "trained", {"language_model": trained})
    assert not list((tmp_path / "trained").glob("adapter*"))
    again = GraniteSpeechFamily(tmp_path / "trained").load_language_model()
    assert all(torch.equal(p, trained[name]) for name, p in again.named_parameters())

    adaptor = family.load_adaptor()
    family.export(tmp_path / "front", {"adaptor": dict(adaptor.named_parameters())})
    kept = load_file(tmp_path / "front" / "adapter_model.safetensors")
    assert kept.keys() == load_file(folder / "adapter_model.safetensors").keys()
    front = GraniteSpeechFamily(tmp_path / "front").load_language_model()
    assert all(torch.equal(p, family.load_language_model().get_parameter(n)) for n, p in front.named_parameters())


def test_adapters_of_other_forms_are_refused(folder: Path) -> None:
    for options in ({"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"rank_pattern": {"q_proj": 8}}):
        adapt(folder, **options)
        with pytest.raises(UserError, match="only a plain LoRA adapter is known"):
            GraniteSpeechFamily(folder).load_language_model()
    adapt(folder)
    file = folder / "adapter_model.safetensors"
    save_file({"base_model.model.projector.linear.lora_A.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match="adapts nothing in the language model"):
        GraniteSpeechFamily(folder).load_language_model()
    file.unlink()
    with pytest.raises(UserError, match=r"lacks adapter_model\.safetensors"):
        GraniteSpeechFamily(folder)
