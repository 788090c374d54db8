"""`speechrl train` for every model family: three steps on a real engine, published, verified and exported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import NeuCodecConfig, Xcodec2Config
from transformers.models.neucodec import NeuCodecModel
from transformers.models.xcodec2 import Xcodec2Model

from rewards.registry import PartScore
from speech.codecs.demo.codec import save_model
from speech.codecs.demo.network import DemoCodecConfig, DemoCodecModel
from speech.families import FAMILIES, load_family
from speech.records import Group
from tests.end_to_end.runs import manifest, records, run, write_config
from tests.speech.codecs.onnx_files import write_s3_tokenizer
from tests.speech.codecs.test_pretrained import FSQ
from tests.speech.codecs.test_snac import write_snac
from tests.speech.families.tts_checkpoints import OPTIONS
from tests.speech.families.writers import HEARING, SPEAKING

STEPS = 3
S3_SIZE = 6561
CODECS_SIZE = 64
"""Ids of the tiny XCodec2 and NeuCodec."""


def even(group: Group) -> list[PartScore]:
    """Share of even ids: what a model of random weights can learn, whether it hears or speaks."""
    return [PartScore(value=sum(i % 2 == 0 for i in t.token_ids) / len(t.token_ids)) for t in group.trajectories]


def _fsq(kind: Any, config: Any, folder: Path) -> str:
    torch.manual_seed(0)
    kind(config(**FSQ)).save_pretrained(folder)
    return str(folder)


def _s3(version: int, folder: Path) -> str:
    write_s3_tokenizer(folder / f"speech_tokenizer_v{version}.onnx")
    return f"tests.speech.codecs.tones:make@{folder}"


def _demo_codec(folder: Path) -> str:
    folder.mkdir()
    torch.manual_seed(0)
    sizes = DemoCodecConfig(codes=20, channels=16, fine_channels=16, code_dim=8, components=8)
    save_model(DemoCodecModel(sizes), folder)
    return str(folder)


CODECS: Mapping[str, Callable[[Path], str]] = {
    "demo_tts": _demo_codec,
    "llasa": partial(_fsq, Xcodec2Model, Xcodec2Config),
    "neutts": partial(_fsq, NeuCodecModel, NeuCodecConfig),
    "orpheus": lambda folder: str(write_snac(folder)),
    "cosyvoice2": partial(_s3, 2),
    "cosyvoice3": partial(_s3, 3),
}
SIZES = {
    "demo_tts": {"codec_size": 72},  # pitches are tokens of their own
    "llasa": {"codec_size": CODECS_SIZE},
    "neutts": {"codec_size": CODECS_SIZE},
    "orpheus": {"codebook": 16},
    "cosyvoice2": {"codec_size": S3_SIZE},
}


def test_every_family_is_here() -> None:
    assert HEARING.keys() | SPEAKING.keys() == FAMILIES.keys()
    assert CODECS.keys() == SPEAKING.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", HEARING)
@pytest.mark.family_check("train")
def test_a_family_that_hears_learns(name: str, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        HEARING[name](tmp_path / "model"),
        steps=STEPS,
        data={"train": str(manifest(tmp_path, 10)), "batch_prompts": 4},
        engines__max_model_len=500,
        rewards={"items": [{"name": "tests.end_to_end.test_families:even"}]},
    )
    check_run(tmp_path, config, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEAKING)
@pytest.mark.family_check("train")
def test_a_family_that_speaks_learns(name: str, tmp_path: Path) -> None:
    # A random Orpheus hardly draws seven ids of seven places in turn, so that there is no sound to score.
    item = "tests.end_to_end.test_families:even" if name == "orpheus" else "tests.speech.codecs.tones:brightness"
    config = write_config(
        tmp_path,
        SPEAKING[name](tmp_path / "model", **SIZES.get(name, {})),
        model__codec=CODECS[name](tmp_path / "codec"),
        model__options=OPTIONS.get(name, {}),
        steps=STEPS,
        data={"train": str(texts(tmp_path)), "batch_prompts": 4},
        rewards={"items": [{"name": item}]},
        sampling={"group_size": 3, "temperature": 1.0, "max_new_tokens": 20, "min_new_tokens": 4},
        engines__max_model_len=500,
    )
    check_run(tmp_path, config, name)


def texts(folder: Path) -> Path:
    """Texts to speak in the voice of another utterance, whose words are given, too."""
    lines = [line for line in records(manifest(folder, 2000)) if line["language"] == "en"][-8:]
    out = [
        {
            "id": line["id"],
            "text": line["text"],
            "language": "en",
            "audio": line["audio"],
            "prompt_audio": lines[i - 1]["audio"],
            "prompt_text": lines[i - 1]["text"],
        }
        for i, line in enumerate(lines)
    ]
    path = folder / "tts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in out), encoding="utf-8")
    return path


def check_run(folder: Path, config: Path, name: str) -> None:
    """Run to the end; each step learned and was published, and the export is the same family with other weights."""
    run("train", str(config))
    out = folder / "runs" / "tiny"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["steps"], summary["version"]) == ("completed", STEPS, STEPS)
    lines = records(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["learner/grad_norm"] > 0
        assert line["publish/probe_gap"] <= line["publish/probe_tolerance"] <= 1e-2
        assert line["logprob_gap/mean"] <= 1e-4 and line["logprob_gap/max"] <= 1e-2
    options = OPTIONS.get(name)
    before, after = (load_family(path, options=options) for path in (folder / "model", out / "export"))
    assert before.name == after.name == name
    old, new = (dict(family.load_language_model().named_parameters()) for family in (before, after))
    assert old.keys() == new.keys()
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    assert len(changed) > len(old) / 2, changed
