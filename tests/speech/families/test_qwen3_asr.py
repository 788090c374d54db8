"""The Qwen3-ASR family against transformers' own class, on a tiny random checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Qwen3ASRForConditionalGeneration,
    Qwen3ForCausalLM,
    WhisperFeatureExtractor,
)

from speech.errors import InputError, UserError
from speech.families import load_family
from speech.families.hearing.qwen3_asr import Qwen3ASRFamily
from speech.records import Utterance
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen3_asr") / "model", tied=request.param)


@pytest.fixture(scope="module")
def family(checkpoint) -> Qwen3ASRFamily:
    return Qwen3ASRFamily(checkpoint)


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype(np.float32)


def utterance(text: str = "hello there", language: str | None = "en") -> Utterance:
    return Utterance(id="1", audio="/a.wav", text=text, language=language)


@torch.no_grad()
def our_logits(family: Qwen3ASRFamily, sound: np.ndarray, said: Utterance, model: torch.nn.Module) -> torch.Tensor:
    """Logits of the prompt with the embeddings of our encoder and adaptor spliced in, (1, positions, vocabulary)."""
    encoder, adaptor = family.load_encoder(), family.load_adaptor()
    embeddings = adaptor(encoder([encoder.features(sound)])[0])
    layout = family.layout(said, len(embeddings))
    inputs = model.get_input_embeddings()(torch.tensor([layout.token_ids]))
    inputs[0, layout.audio_start : layout.audio_start + layout.audio_length] = embeddings
    return model(inputs_embeds=inputs).logits


@pytest.mark.parametrize("seconds", [0.2, 0.99, 1.0, 1.37, 5.004])
@pytest.mark.parametrize("force", [False, True], ids=["free", "forced"])
@pytest.mark.family_check("logits", "qwen3_asr")
def test_logits_equal_the_native_forward(checkpoint, seconds, force):
    family = Qwen3ASRFamily(checkpoint, force_language=force)
    native = Qwen3ASRForConditionalGeneration.from_pretrained(checkpoint)
    inputs = family.processor.apply_transcription_request(wave(seconds), language="en" if force else None)
    with torch.no_grad():
        expected = native(**inputs).logits
    ours = our_logits(family, wave(seconds), utterance(), family.load_language_model())
    assert expected.std() > 0.3, "the logits must be far enough from uniform to tell"
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5


def test_layout_is_the_processors_prompt(family):
    inputs = family.processor.apply_transcription_request(wave(3.0))
    ids = inputs["input_ids"][0].tolist()
    audio = family.model_config.audio_token_id
    layout = family.layout(utterance(), ids.count(audio))
    assert list(layout.token_ids) == ids
    assert [token == audio for token in ids] == [not is_token for is_token in layout.is_token]
    assert layout.audio_length == 39


def test_encoder_does_not_see_batch_neighbours(family):
    encoder = family.load_encoder()
    sounds = [wave(seconds, seed) for seed, seconds in enumerate([0.3, 7.3, 1.0, 2.51, 0.02])]
    with torch.no_grad():
        features = [encoder.features(sound) for sound in sounds]
        together = encoder(features)
        alone = [encoder([item])[0] for item in features]
    assert [len(states) for states in alone] == [7, 95, 13, 33, 7]
    for one, many in zip(alone, together, strict=True):
        assert one.shape == many.shape
        assert (one - many).abs().max() <= 1e-5


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 99, 100, 101, 200, 250, 3000])
def test_audio_length_is_known_before_encoding(family, frames):
    encoder = family.load_encoder()
    assert family.audio_length(frames) == len(encoder([torch.zeros(frames, 16)])[0])


def test_encoder_parts_keep_their_dtype(family):
    assert {p.dtype for p in family.load_encoder(torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in family.load_adaptor(torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in family.load_language_model(torch.bfloat16).parameters()} == {torch.bfloat16}
    encoder = family.load_encoder(torch.bfloat16)
    assert encoder([encoder.features(wave(1.0))])[0].dtype == torch.bfloat16


def test_language_model_is_loaded_without_the_encoder(checkpoint, monkeypatch):
    read: list[str] = []
    from speech.families.hearing import native

    real = native.read_tensors
    monkeypatch.setattr(native, "read_tensors", lambda folder, prefix: read.append(prefix) or real(folder, prefix))
    model = Qwen3ASRFamily(checkpoint).load_language_model()
    assert not model.training
    assert set(read) <= {"model.language_model.", "lm_head."}


def encode(family: Qwen3ASRFamily, text: str) -> list[int]:
    return family.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("output", "text", "language"),
    [
        ("language English<asr_text>hello there<|im_end|>", "hello there", "en"),
        ("language Chinese<asr_text>你好<|im_end|>", "你好", "zh"),
        ("language None<asr_text><|im_end|>", "", None),
        ("language Klingon<asr_text>x", "x", "klingon"),
        ("language<asr_text>x", "x", None),
        ("no marker at all<|im_end|>", "no marker at all", None),
        ("language English", "language English", None),
        ("<asr_text>x<|endoftext|>", "x", None),
        ("language English<asr_text>a<asr_text>b", "ab", "en"),
        ("language English<asr_text>" + "la " * 40, ("la " * 40).strip(), "en"),
        ("", "", None),
    ],
)
def test_parse_output(family, output, text, language):
    assert family.parse_output(encode(family, output)) == (text, language)


def test_target_is_what_the_model_should_say(checkpoint, family):
    free, forced = family.target_ids(utterance()), Qwen3ASRFamily(checkpoint, force_language=True)
    assert free == encode(family, "language English<asr_text>hello there<|im_end|>")
    assert family.parse_output(free) == ("hello there", "en")
    assert free[-1] == family.stop_token_ids[0]
    assert family.target_ids(utterance(language=None)) == encode(family, "language None<asr_text>hello there<|im_end|>")
    assert forced.target_ids(utterance()) == encode(family, "hello there<|im_end|>")
    assert forced.target_ids(utterance(language=None)) == family.target_ids(utterance(language=None))


def test_a_transcript_holds_no_orders_to_the_model(family):
    for token in ("<|im_end|>", "<asr_text>", "<|audio_pad|>"):  # the second is added, but not called special
        with pytest.raises(InputError, match=f"text: holds the control token {re.escape(token)}"):
            family.target_ids(utterance(f"hello {token} there"))
    own = Qwen3ASRFamily(family.path)
    own.tokenizer.add_tokens(["kubernetes"])  # a word
    assert own.target_ids(utterance("kubernetes"))[-2] == own.tokenizer.convert_tokens_to_ids("kubernetes")


def test_stop_ids_come_from_the_checkpoint(family):
    assert family.stop_token_ids == tuple(encode(family, "<|im_end|><|endoftext|>"))


def test_engine_folder_is_a_plain_language_model(family, tmp_path):
    family.write_engine_model(tmp_path / "engine")
    config = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["eos_token_id"] == list(family.stop_token_ids)
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "engine").eval()
    assert torch.equal(
        our_logits(family, wave(1.5), utterance(), model),
        our_logits(family, wave(1.5), utterance(), family.load_language_model()),
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "engine")
    assert tokenizer.encode("hello<|im_end|>") == encode(family, "hello<|im_end|>")


@pytest.mark.parametrize("part", ["language_model", "adaptor", "encoder"])
@pytest.mark.family_check("export", "qwen3_asr")
def test_export_replaces_given_parts_only(checkpoint, family, tmp_path, part):
    module = getattr(family, f"load_{part}")()
    new = {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}
    family.export(tmp_path / "export", {part: new})
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "export"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    own = {"language_model": ("model.language_model.", "lm_head."), "adaptor": ("model.multi_modal_projector.",),
           "encoder": ("model.audio_tower.",)}[part]  # fmt: skip
    assert changed == {name for name in before if name.startswith(own)}

    again = Qwen3ASRFamily(tmp_path / "export")
    for name, parameter in getattr(again, f"load_{part}")().named_parameters():
        assert torch.equal(parameter, new[name])
    assert again.layout(utterance(), 7) == family.layout(utterance(), 7)
    assert list(tmp_path.iterdir()) == [tmp_path / "export"]


def test_export_without_new_weights_is_the_same_model(checkpoint, family, tmp_path):
    family.export(tmp_path / "export", {})
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "export"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    native = Qwen3ASRForConditionalGeneration.from_pretrained(tmp_path / "export")
    inputs = family.processor.apply_transcription_request(wave(1.0))
    original = Qwen3ASRForConditionalGeneration.from_pretrained(checkpoint)
    assert torch.equal(native(**inputs).logits, original(**inputs).logits)


def test_export_refuses_what_does_not_fit(family, tmp_path):
    with pytest.raises(ValueError, match="no part 'vocoder'"):
        family.export(tmp_path / "export", {"vocoder": {}})
    with pytest.raises(ValueError, match=r"linear_1\.weight has shape \(2, 2\), the model has \(32, 32\)"):
        family.export(tmp_path / "export", {"adaptor": {"linear_1.weight": torch.zeros(2, 2)}})
    with pytest.raises(UserError, match="exists already"):
        family.export(tmp_path, {})


def test_bf16_survives_training_in_fp32(tmp_path):
    family = Qwen3ASRFamily(write_checkpoint(tmp_path / "model", dtype=torch.bfloat16))
    state = dict(family.load_language_model(torch.float32).named_parameters())
    family.export(tmp_path / "export", {"language_model": state})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "export"))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(torch.equal(before[name], after[name]) for name in before)
    family.write_engine_model(tmp_path / "engine")
    assert {t.dtype for t in load_file(tmp_path / "engine" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"],
)
def test_a_missing_file_is_named(checkpoint, tmp_path, name):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(UserError, match=name):
        Qwen3ASRFamily(tmp_path / "model").layout(utterance(), 1)


def test_missing_weights_are_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(file).items() if not k.endswith("linear_2.bias") and "layers.1" not in k}, file
    )
    family = Qwen3ASRFamily(tmp_path / "model")
    with pytest.raises(UserError, match=r"missing \['linear_2.bias'\]"):
        family.load_adaptor()
    with pytest.raises(UserError, match=r"Qwen3ForCausalLM do not fit .* missing \['model.layers.1"):
        family.load_language_model()


def to_original_form(native: Path, folder: Path) -> Path:
    """The same checkpoint under the names that Qwen3-ASR was first published with."""
    folder.mkdir()
    names = {"model.language_model.": "thinker.model.", "lm_head.": "thinker.lm_head.",
             "model.multi_modal_projector.linear_": "thinker.audio_tower.proj",
             "model.audio_tower.": "thinker.audio_tower."}  # fmt: skip
    tensors = {}
    for name, tensor in load_file(native / "model.safetensors").items():
        new = next(name.replace(old, new, 1) for old, new in names.items() if name.startswith(old))
        tensors[new] = tensor
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((native / "config.json").read_text())
    text = {k: v for k, v in config["text_config"].items() if k not in ("rope_parameters", "layer_types")}
    text |= {
        "model_type": "qwen3_asr_text",
        "rope_theta": config["text_config"]["rope_parameters"]["rope_theta"],
        "rope_scaling": {"mrope_section": [6, 5, 5], "interleaved": True, "rope_type": "default"},
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    audio = {k: v for k, v in config["audio_config"].items() if k != "max_position_embeddings"}
    audio |= {"model_type": "qwen3_asr_audio_encoder", "max_source_positions": 1500, "conv_chunksize": 500}
    thinker = {"audio_config": audio, "text_config": text, "audio_token_id": config["audio_token_id"]}
    written = {"model_type": "qwen3_asr", "support_languages": ["English"], "thinker_config": thinker}
    (folder / "config.json").write_text(json.dumps(written))
    template = (native / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    WhisperFeatureExtractor(16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(native / name, folder / name)
    return folder


def test_the_original_form_is_the_same_model(checkpoint, family, tmp_path):
    original = load_family(to_original_form(checkpoint, tmp_path / "original"))
    assert isinstance(original, Qwen3ASRFamily)
    assert original.layout(utterance(), 7) == family.layout(utterance(), 7)
    assert original.stop_token_ids == family.stop_token_ids
    for seconds in (0.2, 1.37, 5.004):
        logits = [our_logits(f, wave(seconds), utterance(), f.load_language_model()) for f in (original, family)]
        assert torch.equal(*logits)


@pytest.mark.parametrize("part", ["language_model", "adaptor", "encoder"])
def test_an_export_of_the_original_form_keeps_its_names(checkpoint, tmp_path, part):
    folder = to_original_form(checkpoint, tmp_path / "original")
    family = Qwen3ASRFamily(folder)
    new = {name: parameter + 0.01 for name, parameter in getattr(family, f"load_{part}")().named_parameters()}
    family.export(tmp_path / "export", {part: new})
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "export"))
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) == len(new)
    module = getattr(Qwen3ASRFamily(tmp_path / "export"), f"load_{part}")()
    assert all(torch.equal(parameter, new[name]) for name, parameter in module.named_parameters())


def test_another_rotary_embedding_in_the_original_form_is_refused(checkpoint, tmp_path):
    folder = to_original_form(checkpoint, tmp_path / "original")
    config = json.loads((folder / "config.json").read_text())
    config["thinker_config"]["text_config"]["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="only the default rotary embedding is known"):
        Qwen3ASRFamily(folder)
