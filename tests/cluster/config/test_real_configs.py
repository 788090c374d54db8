"""The configurations for real models: they pass the dry run with a tiny checkpoint, and their comments are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import Qwen3ASRConfig

from benchmarks.real_size import AUDIO, text_shape
from cluster import preflight
from cluster.cli import main
from cluster.config import RunConfig, load_config
from cluster.preflight import gpus_wanted
from cluster.sizing.estimate import estimate
from cluster.sizing.fit import shortages
from cluster.sizing.shape import ModelShape, read_shape
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "real").glob("*.yaml"))
WIDTHS = {"0.6b": 1024, "1.7b": 2048}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_dry_run_with_a_tiny_model(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # the manifests' audio
    monkeypatch.setattr(preflight, "_gpus", lambda config, training: [])  # this machine has none
    tiny = write_checkpoint(tmp_path / "tiny", text={"max_position_embeddings": 32_768})
    data = [f"data.{split}=assets/speech/{split}.jsonl" for split in ("train", "valid", "test")]
    assert main(["train", str(file), "--dry-run", f"model.path={tiny}", f"runs_dir={tmp_path}", *data]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def of(file: Path, tmp_path: Path) -> tuple[RunConfig, ModelShape]:
    """The configuration, and its model's sizes without weights; all encoders have the sizes of the 0.6B model's."""
    (width,) = (width for name, width in WIDTHS.items() if name in file.stem)
    tied = {"tie_word_embeddings": True}
    config = Qwen3ASRConfig(audio_config=AUDIO, text_config={**text_shape(width), **tied}, **tied)
    config.architectures = ["Qwen3ASRForConditionalGeneration"]
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
    (gpus,) = map(int, re.findall(r"_(\d+)gpu", file.stem))
    (memory,) = map(float, set(re.findall(r"--memory (\d+)", file.read_text(encoding="utf-8"))))
    assert sum(gpus_wanted(config, training=True).values()) == gpus
    assert shortages(config, estimate(config, shape, {}), gpus, memory * 1e9) == []
