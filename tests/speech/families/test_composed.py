"""The composed family: its folder is built from real encoders and language models of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    HubertConfig,
    HubertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from speech.errors import InputError, UserError
from speech.families import load_family
from speech.families.hearing.composed import ComposedFamily, compose
from speech.records import Utterance
from tests.speech.families.hearing_checkpoints import MELS, TEXT, byte_tokenizer, randomise, wave

CHAT = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def write_encoder(kind: str, folder: Path) -> Path:
    model: PreTrainedModel
    if kind == "whisper":
        sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}  # fmt: skip
        model = WhisperForConditionalGeneration(
            WhisperConfig(num_mel_bins=MELS, vocab_size=99, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                          decoder_start_token_id=1, **sizes)
        )  # fmt: skip
        WhisperFeatureExtractor(MELS).save_pretrained(folder)
    else:
        model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=9, **SMALL)) if kind == "wav2vec2" else HubertModel(
            HubertConfig(feat_extract_norm="layer", do_stable_layer_norm=True, **SMALL)
        )  # fmt: skip
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def write_language_model(folder: Path, tied: bool = True, chat: bool = True) -> Path:
    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT if chat else None
    tokenizer.save_pretrained(folder)
    kind: Any = (Qwen2Config, Qwen2ForCausalLM) if tied else (LlamaConfig, LlamaForCausalLM)
    config = kind[0](**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=tied, eos_token_id=tokenizer.eos_token_id,
                     bos_token_id=0, pad_token_id=0)  # fmt: skip
    randomise(kind[1](config)).save_pretrained(folder)
    return folder


def write_composed(folder: Path, kind: str = "whisper", tied: bool = True, chat: bool = True) -> Path:
    encoder = write_encoder(kind, folder.with_name("encoder"))
    language_model = write_language_model(folder.with_name("language_model"), tied, chat)
    return compose(encoder, language_model, folder, hidden=96)


@pytest.fixture(scope="module", params=["whisper", "wav2vec2", "hubert"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composed(tmp_path_factory.mktemp(kind) / "model", kind, tied=kind != "hubert", chat=kind != "hubert")


@pytest.fixture(scope="module")
def family(folder: Path) -> ComposedFamily:
    family = load_family(folder)
    assert isinstance(family, ComposedFamily)
    return family


def utterance() -> Utterance:
    return Utterance(id="1", audio="/a.wav", text="hello there")


@torch.no_grad()
@pytest.mark.family_check("logits", "composed")
def test_logits_are_those_of_the_two_models_and_the_projector(kind: str, folder: Path, family: ComposedFamily) -> None:
    """Parts as transformers loads them from the two folders; the projector written out."""
    tower = AutoModel.from_pretrained(folder.with_name("encoder")).eval()
    model = AutoModelForCausalLM.from_pretrained(folder.with_name("language_model")).eval()
    stored = load_file(folder / "model.safetensors")
    one, other = (stored[f"adaptor.linear_{i}.weight"] for i in (1, 2))
    for seconds in (0.2, 1.37, 5.0):
        sound = wave(seconds)
        if kind == "whisper":
            assert isinstance(tower, WhisperModel)
            mel = WhisperFeatureExtractor.from_pretrained(folder.with_name("encoder"))(
                sound, sampling_rate=16_000, return_tensors="pt"
            )["input_features"]
            states = tower.encoder(mel).last_hidden_state[0, : -(-len(sound) // 320)]
        else:
            values = torch.tensor(sound)
            states = tower(((values - values.mean()) / (values.var(correction=0) + 1e-7).sqrt())[None])[0][0]
        rows = [torch.cat([*states[i : i + 5], *[torch.zeros(32)] * max(0, i + 5 - len(states))])
                for i in range(0, len(states), 5)]  # fmt: skip
        hidden = (torch.stack(rows) @ one.T + stored["adaptor.linear_1.bias"]).relu()
        audio = hidden @ other.T + stored["adaptor.linear_2.bias"]
        assert family.audio_length(family.frames(len(sound))) == len(audio)

        text = family.tokenizer.decode(list(family.layout(utterance(), 0).token_ids))
        if family.tokenizer.chat_template is None:
            assert text == "USER: Transcribe speech to text. ASSISTANT: "
        else:
            assert text == "<|im_start|>user\nTranscribe speech to text.<|im_end|>\n<|im_start|>assistant\n"
        layout = family.layout(utterance(), len(audio))
        embed = model.get_input_embeddings()
        start, end = layout.audio_start, layout.audio_start + len(audio)
        row = torch.cat(
            [embed(torch.tensor(layout.token_ids[:start])), audio, embed(torch.tensor(layout.token_ids[end:]))]
        )
        expected = model(inputs_embeds=row[None]).logits

        encoder, adaptor = family.load_encoder(), family.load_adaptor()
        features = encoder.features(sound)
        assert len(features) == family.frames(len(sound))
        row[start:end] = adaptor(encoder([features])[0])
        ours = family.load_language_model()(inputs_embeds=row[None]).logits
        assert expected.std() > 0.3
        assert (ours - expected).abs().max() <= 1e-4
        row[start:end] = adaptor(encoder([encoder.features(wave(seconds, 1))])[0])
        assert (family.load_language_model()(inputs_embeds=row[None]).logits - expected).abs().max() > 1e-3


@pytest.mark.family_check("export", "composed")
def test_an_export_is_a_composed_folder_with_new_weights(folder: Path, family: ComposedFamily, tmp_path: Path) -> None:
    parts = ("language_model", "adaptor", "encoder")
    states = {
        part: {name: p + 0.01 for name, p in getattr(family, f"load_{part}")().named_parameters()} for part in parts
    }
    family.export(tmp_path / "export", states)
    assert load_file(tmp_path / "export" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    again = load_family(tmp_path / "export")
    for part in parts:
        module = getattr(again, f"load_{part}")()
        assert all(torch.equal(p, states[part][name]) for name, p in module.named_parameters())
    assert again.layout(utterance(), 3) == family.layout(utterance(), 3)  # type: ignore[attr-defined]


def test_target_and_output(family: ComposedFamily) -> None:
    target = family.target_ids(utterance())
    assert target[-1] == family.tokenizer.convert_tokens_to_ids("<|im_end|>") == family.stop_token_ids[0]
    assert family.parse_output(target) == ("hello there", None)


def test_what_cannot_be_composed_is_refused(tmp_path: Path) -> None:
    language_model = write_language_model(tmp_path / "lm")
    with pytest.raises(UserError, match=r"lacks preprocessor_config\.json"):
        compose(language_model, language_model, tmp_path / "out")
    (language_model / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="model_type 'qwen2'; known encoders are whisper, wav2vec2"):
        compose(language_model, language_model, tmp_path / "out")
    encoder = write_encoder("whisper", tmp_path / "whisper")
    with pytest.raises(UserError, match="exists already"):
        compose(encoder, language_model, tmp_path)
    config = json.loads((compose(encoder, language_model, tmp_path / "out") / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "projector"}))
    with pytest.raises(UserError, match="lacks projector"):
        load_family(tmp_path / "out")


@torch.no_grad()
def test_whisper_with_a_shorter_window_hears_what_its_first_positions_hear(tmp_path: Path) -> None:
    source, language_model = write_encoder("whisper", tmp_path / "encoder"), write_language_model(tmp_path / "lm")
    family = load_family(compose(source, language_model, tmp_path / "model", hidden=96, window=4))
    assert isinstance(family, ComposedFamily)
    tower = AutoModel.from_pretrained(source).encoder.eval()
    tower.embed_positions.weight.data = tower.embed_positions.weight.data[:200]
    tower.embed_positions.num_embeddings = 200
    tower.config.max_source_positions = tower.max_source_positions = 200
    sound = wave(1.37)
    mel = WhisperFeatureExtractor.from_pretrained(source)(
        sound, sampling_rate=16_000, return_tensors="pt", padding="max_length", max_length=4 * 16_000
    )["input_features"]
    assert mel.shape[2] == 400
    encoder = family.load_encoder()
    states = encoder([encoder.features(sound)])[0]
    expected = tower(mel).last_hidden_state[0, : len(states)]
    assert len(states) == -(-len(sound) // 320)
    assert expected.std() > 0.3
    assert (states - expected).abs().max() <= 1e-4
    assert len(encoder.features(wave(4.0))) == family.frames(4 * 16_000)
    with pytest.raises(InputError, match=r"4 s"):
        encoder.features(wave(4.1))
    for window in (0, 31):
        with pytest.raises(UserError, match="only Whisper has one, of 1 to 30 s"):
            compose(source, language_model, tmp_path / "other", window=window)
