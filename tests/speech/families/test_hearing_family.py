"""Families that hear against transformers' own classes, on tiny random checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from speech.errors import InputError, UserError
from speech.families import load_family
from speech.families.hearing.native import NativeFamily
from speech.records import Utterance
from tests.speech.families.hearing_checkpoints import CASES, Case, wave

PARTS = ("language_model", "adaptor", "encoder")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def checkpoint(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp(case.family.name) / "model")


@pytest.fixture(scope="module")
def family(case: Case, checkpoint: Path) -> NativeFamily:
    family = load_family(checkpoint)
    assert type(family) is case.family
    return family


@pytest.fixture(scope="module")
def parts(family: NativeFamily) -> dict[str, nn.Module]:
    return {part: getattr(family, f"load_{part}")() for part in PARTS}


def utterance(text: str = "hello there", language: str | None = "en") -> Utterance:
    return Utterance(id="1", audio="/a.wav", text=text, language=language)


@torch.no_grad()
def our_logits(family: NativeFamily, parts: dict[str, nn.Module], sound: np.ndarray) -> torch.Tensor:
    """Logits of the prompt with the embeddings of our encoder and adaptor spliced in, (positions, vocabulary)."""
    encoder, adaptor, model = parts["encoder"], parts["adaptor"], parts["language_model"]
    embeddings = adaptor(encoder([encoder.features(sound)])[0])
    layout = family.layout(utterance(), len(embeddings))
    inputs = model.get_input_embeddings()(torch.tensor([layout.token_ids]).clamp(max=model.config.vocab_size - 1))
    inputs[0, layout.audio_start : layout.audio_start + layout.audio_length] = embeddings
    return model(inputs_embeds=inputs).logits[0]


@torch.no_grad()
def native_logits(case: Case, folder: Path, family: NativeFamily, sound: np.ndarray) -> torch.Tensor:
    """Logits of the native class, loaded from a folder, on what the native processor makes of the recording."""
    native, report = case.native.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return native.eval()(**case.inputs(family, sound, utterance())).logits[0] * case.scale


@pytest.mark.family_check("logits")
def test_logits_equal_the_native_forward(case, checkpoint, family, parts):
    for seconds in case.seconds:
        expected = native_logits(case, checkpoint, family, wave(seconds))
        ours = our_logits(family, parts, wave(seconds))
        assert expected.std() > 0.3, "the logits must be far enough from uniform to tell"
        assert ours.shape == expected.shape, seconds
        assert (ours - expected).abs().max() <= 1e-4, seconds


def test_layout_is_the_processors_prompt(case, family):
    for seconds in case.seconds:
        sound = wave(seconds)
        ids = case.inputs(family, sound, utterance())["input_ids"][0].tolist()
        layout = family.layout(utterance(), family.audio_length(family.frames(len(sound))))
        assert list(layout.token_ids) == ids, seconds
        assert [token == family.audio_token for token in ids] == [not is_token for is_token in layout.is_token]


@pytest.mark.family_check("audio")
def test_other_audio_gives_other_logprobs(family, parts):
    one, other = (our_logits(family, parts, wave(2.0, seed))[-1].log_softmax(-1) for seed in (0, 1))
    assert (one - other).abs().max() > 1e-2


def test_encoder_does_not_see_batch_neighbours(family, parts):
    sounds = [wave(seconds, seed) for seed, seconds in enumerate([0.3, 7.3, 1.0, 2.51])]
    with torch.no_grad():
        features = [parts["encoder"].features(sound) for sound in sounds]
        together = parts["encoder"](features)
        for item, many in zip(features, together, strict=True):
            one = parts["encoder"]([item])[0]
            assert one.shape == many.shape
            assert (one - many).abs().max() <= 1e-5


@pytest.mark.parametrize("samples", [3201, 15_999, 16_000, 16_001, 16_161, 40_000, 479_520, 479_999])
def test_audio_length_is_known_before_encoding(family, parts, samples):
    features = parts["encoder"].features(np.zeros(samples, np.float32))
    assert len(features) == family.frames(samples)
    with torch.no_grad():
        assert family.audio_length(len(features)) == len(parts["adaptor"](parts["encoder"]([features])[0]))


def test_parts_keep_their_dtype(family):
    for part in PARTS:
        module = getattr(family, f"load_{part}")(torch.bfloat16)
        assert not module.training
        # transformers keeps fixed positions in float32 where the native class does.
        assert {p.dtype for n, p in module.named_parameters() if "embed_positions" not in n} == {torch.bfloat16}
    encoder = family.load_encoder(torch.bfloat16)
    assert encoder([encoder.features(wave(1.0))])[0].dtype == torch.bfloat16


def test_target_is_what_the_model_should_say(family):
    target = family.target_ids(utterance())
    assert target[-1] == family.stop_token_ids[0]
    assert family.parse_output(target)[0] == "hello there"
    stop = family.tokenizer.convert_ids_to_tokens(target[-1])
    if family.name == "voxtral":  # whose tokenizer reads no control tokens from a text
        ids = family.target_ids(utterance(f"hello {stop} there"))[:-1]
        assert not family.control_tokens.keys() & set(ids)
    else:
        with pytest.raises(InputError, match="text: holds the control token"):
            family.target_ids(utterance(f"hello {stop} there"))


def test_engine_folder_is_a_plain_language_model(family, parts, tmp_path):
    family.write_engine_model(tmp_path / "engine")
    config = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert config["eos_token_id"] == list(family.stop_token_ids)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "engine").eval()
    assert torch.equal(
        our_logits(family, {**parts, "language_model": model}, wave(1.5)), our_logits(family, parts, wave(1.5))
    )
    stored = load_file(tmp_path / "engine" / "model.safetensors").keys()
    assert {family.engine_name(name) for name, _ in model.named_parameters()} == set(stored)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.family_check("export")
def test_export_replaces_given_parts_only(case, checkpoint, family, parts, tmp_path, part):
    new = {name: parameter + 0.01 for name, parameter in parts[part].named_parameters()}
    family.export(tmp_path / "export", {part: new})
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "export"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {family.stored_name(part, name) for name in new}

    again = load_family(tmp_path / "export")
    module = getattr(again, f"load_{part}")()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, new[name])
    assert again.layout(utterance(), 7) == family.layout(utterance(), 7)
    assert list(tmp_path.iterdir()) == [tmp_path / "export"]
    ours = our_logits(family, {**parts, part: module}, wave(1.37))
    theirs = native_logits(case, tmp_path / "export", again, wave(1.37))
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - our_logits(family, parts, wave(1.37))).abs().max() > 1e-3


def test_what_transformers_writes_is_read_too(case, checkpoint, family, parts, tmp_path):
    case.native.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    for file in checkpoint.iterdir():
        if not (tmp_path / "saved" / file.name).exists():
            (tmp_path / "saved" / file.name).write_bytes(file.read_bytes())
    again = load_family(tmp_path / "saved")
    for part in PARTS:
        for name, parameter in getattr(again, f"load_{part}")().named_parameters():
            assert torch.equal(parameter, parts[part].get_parameter(name))


def test_positions_of_the_omni_prompt_are_one_count_on_all_three_axes(tmp_path):
    """What lets a plain Qwen2 stand in for the thinker's language model."""
    case = CASES["qwen2_5_omni"]
    family = load_family(case.write(tmp_path / "model"))
    native = case.native.from_pretrained(tmp_path / "model")
    for seconds in case.seconds:
        inputs = case.inputs(family, wave(seconds), utterance())
        positions, deltas = native.get_rope_index(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            audio_seqlens=inputs["feature_attention_mask"].sum(-1),
        )
        length = inputs["input_ids"].shape[1]
        assert torch.equal(positions.long(), torch.arange(length).expand(3, 1, length))
        assert int(deltas) == 0  # so that the response goes on counting


def test_the_thinker_is_found_inside_the_whole_omni_model(tmp_path):
    write, alone = CASES["qwen2_5_omni"].write, tmp_path / "alone"
    thinker = load_family(write(alone))
    whole = write(tmp_path / "whole")
    tensors = {f"thinker.{name}": tensor for name, tensor in load_file(alone / "model.safetensors").items()}
    save_file({**tensors, "talker.lm_head.weight": torch.ones(2, 2)}, whole / "model.safetensors")
    config = json.loads((alone / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": config}))
    family = load_family(whole)
    for part in PARTS:
        expected = dict(getattr(thinker, f"load_{part}")().named_parameters())
        found = dict(getattr(family, f"load_{part}")().named_parameters())
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    family.export(tmp_path / "export", {"adaptor": {"bias": torch.zeros(64)}})
    after = load_file(tmp_path / "export" / "model.safetensors")
    assert torch.equal(after.pop("talker.lm_head.weight"), torch.ones(2, 2))
    assert {name for name in after if not torch.equal(after[name], tensors[name])} == {"thinker.audio_tower.proj.bias"}


@pytest.mark.parametrize("name, seconds", [("qwen2_audio", 30.1), ("glmasr", 631), ("qwen2_5_omni", 301)])
def test_a_recording_that_is_too_long_is_refused(name, seconds, tmp_path):
    encoder = load_family(CASES[name].write(tmp_path / "model")).load_encoder()
    with pytest.raises(InputError, match=rf"lasts {seconds:.1f} s, and the model hears \d+ s at most"):
        encoder.features(wave(seconds))


def test_export_refuses_what_does_not_fit(family, tmp_path):
    with pytest.raises(ValueError, match="no part 'vocoder'"):
        family.export(tmp_path / "export", {"vocoder": {}})
    with pytest.raises(ValueError, match=r"norm\.weight has shape \(2, 2\), the model has \(64,\)"):
        family.export(tmp_path / "export", {"language_model": {"model.norm.weight": torch.zeros(2, 2)}})
    with pytest.raises(UserError, match="exists already"):
        family.export(tmp_path, {})


def test_bf16_survives_training_in_fp32(case, tmp_path):
    family = load_family(case.write(tmp_path / "model", dtype=torch.bfloat16))
    family.export(tmp_path / "export", {"language_model": dict(family.load_language_model().named_parameters())})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "export"))
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    family.write_engine_model(tmp_path / "engine")
    assert {t.dtype for t in load_file(tmp_path / "engine" / "model.safetensors").values()} == {torch.bfloat16}
