"""`speechrl data inspect` on files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster.cli import main


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str]:
    """A training and a test set that share one recording and one text; the first has a bad line."""
    tone = 0.5 * np.sin(np.arange(16_000) / 3)
    for name, wave in (("one", tone), ("two", -tone), ("three", np.zeros(16_000))):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000)
    lines = {
        "train": [("a", "one", "turn <on>"), ("b", "two", "off"), ("c", "three", "left"), ("d", "gone", "right")],
        "test": [("e", "one", "up"), ("f", "two", "Turn on!")],
    }
    for split, entries in lines.items():
        values = [
            {"id": name, "audio": f"{audio}.wav", "text": text, "language": "en"} for name, audio, text in entries
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
    return str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")


def test_findings_are_printed_and_written_as_a_page(
    sets: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["data", "inspect", *sets, "--audio", "-o", str(page)]) == 0
    said = capsys.readouterr().out
    for expected in ("bad lines, left out: 1", "gone.wav", "recordings that cannot be used: 1", "is silent"):
        assert expected in said
    assert "a = e" in said, "the shared recording comes first"
    html = page.read_text(encoding="utf-8")
    assert "is silent" in html and "<on>" not in html


def test_strict_fails_where_a_test_set_was_trained_on(sets: tuple[str, str]) -> None:
    assert main(["data", "inspect", *sets, "--strict"]) == 1
    assert main(["data", "inspect", sets[0], "--strict"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [(["-o", "page.txt"], "ends in .html"), ([], "given twice")],
)
def test_bad_options_are_refused(
    options: list[str], message: str, sets: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", sets[0], *([] if options else [sets[0]]), *options]) == 2
    assert message in capsys.readouterr().err
