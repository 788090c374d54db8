"""The commands of the README for one GPU: each is one of ours, and those before the training run with a tiny model."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cluster import cli, preflight
from cluster.config import load_config
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """Words of each line, without comments."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## One GPU\n")[1]
    lines = section.split("```")[1].splitlines()[1:]
    return [shlex.split(line, comments=True) for line in lines]


def test_every_line_is_a_command() -> None:
    setup, copy, *ours = commands()
    assert setup == ["make", "setup", "DEVICE=gpu", "&&", "source", ".venv-gpu/bin/activate"]
    assert copy[0] == "cp" and (ROOT / copy[1]).is_file() and len(ours) == 5
    config = load_config(ROOT / copy[1])
    for words in ours:
        assert words[0] == "speechrl"
        args = cli._parsers(words[1:])[0].parse_args(words[1:])
        assert args.command == words[1]
        model = getattr(args, "model", None)
        assert model in (None, config.model.path, f"runs/{config.name}/export")


def test_plan_and_dry_run_with_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "_gpus", lambda config, training: [])  # this machine has none
    _, copy, *ours = commands()
    shutil.copy(ROOT / copy[1], copy[2])
    tiny = write_checkpoint(tmp_path / "tiny", text={"max_position_embeddings": 32_768})
    edited = Path(copy[2]).read_text(encoding="utf-8")  # as the comment of the line says
    edited = re.sub(r"path: \S+", f"path: {tiny}", edited, count=1)
    for split in ("train", "valid", "test"):
        edited = edited.replace(f"{split}: data/{split}.jsonl", f"{split}: {ROOT}/assets/speech/{split}.jsonl")
    Path(copy[2]).write_text(edited, encoding="utf-8")
    for words in (words for words in ours if words[1] == "plan" or "--dry-run" in words):
        assert cli.main(words[1:]) == 0
        said = capsys.readouterr().out
        assert ("nothing is wrong" if "--dry-run" in words else "learner rank") in said
