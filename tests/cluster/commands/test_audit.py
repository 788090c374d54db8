"""`speechrl audit` reads a run's folder and says whether every prompt is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster import cli
from cluster.config import dump_config, load_config
from cluster.runs.ledger import BAD_UTTERANCE, Ledger, LedgerEntry


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder over two utterances, without a ledger."""
    lines = []
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.full(8000, 0.1), 16_000)
        lines.append(json.dumps({"id": name, "audio": f"{name}.wav", "text": "hello"}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    config = load_config(None, ["name=r", "model.path=m", f"data.train={tmp_path / 'train.jsonl'}"])
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return folder


def test_an_exact_account(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        LedgerEntry("0/a", "trained"),
        LedgerEntry("0/b", "rejected", "no variance"),
        LedgerEntry("1/a", "trained"),
    ]
    Ledger(run / "ledger.jsonl").append(1, entries)
    assert cli.main(["audit", str(run)]) == 0
    out = capsys.readouterr().out
    assert "2 prompts trained, 1 rejected; 1 full epochs" in out
    assert "no variance: 1" in out


def test_bad_utterances_are_one_reason_and_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        LedgerEntry("0/a", "rejected", BAD_UTTERANCE + "[/data/a.wav]: no such file"),
        LedgerEntry("0/b", "rejected", BAD_UTTERANCE + "/data/b.wav: is silent"),
        LedgerEntry("1/a", "trained"),
    ]
    ledger = Ledger(run / "ledger.jsonl")
    ledger.append(1, entries)
    assert ledger.bad_utterances() == [("0/a", "[/data/a.wav]: no such file"), ("0/b", "/data/b.wav: is silent")]
    assert cli.main(["audit", str(run)]) == 0
    out = capsys.readouterr().out
    assert "bad utterance: 2" in out and "0/a: [/data/a.wav]: no such file" in out


def test_prompts_in_flight_are_not_missing_nor_are_those_rejected_there(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The resumed run will put both into the ledger."""
    Ledger(run / "ledger.jsonl").append(1, [LedgerEntry("1/a", "trained")])
    checkpoint = run / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    state = {"in_flight": [[[0, 0]]], "rejected_in_flight": [[[0, 1, "is silent"]]]}
    (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
    assert cli.main(["audit", str(run)]) == 0, capsys.readouterr().out


def test_a_lost_and_a_doubled_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(run / "ledger.jsonl").append(1, [LedgerEntry("0/a", "trained")] * 2 + [LedgerEntry("1/a", "trained")])
    assert cli.main(["audit", str(run)]) == 1
    out = capsys.readouterr().out
    assert "twice: 1: 0/a" in out and "missing: 1: 0/b" in out and "not exact" in out


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(tmp_path)]) == 2
    assert "no ledger.jsonl" in capsys.readouterr().err
