"""`speechrl compare` on files."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cluster import cli
from cluster.commands.results.compare import print_comparison
from cluster.evaluation.difference import Row, compare
from cluster.evaluation.paired import Difference
from cluster.evaluation.sources import read_source
from speech.edits import EditCounts
from tests.cluster.evaluation.test_difference import jsonl, line


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """B is wrong where A is right on 30 of 200 utterances, and right where A is wrong on one."""
    good, bad = "turn on the light", "turn on the"
    names = [f"u{i:03}" for i in range(200)]
    a = [line(name, bad if i == 50 else good) for i, name in enumerate(names)]
    b = [line(name, bad if i < 30 else good) for i, name in enumerate(names)]
    zh = line("z", "打开登", "打开灯", language="zh")
    return jsonl(tmp_path / "a.jsonl", *a, zh), jsonl(tmp_path / "b.jsonl", *b, zh)


def test_the_table(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, files)
    assert cli.main(["compare", a, b, "--changed", "2"]) == 0
    said = capsys.readouterr().out
    for part in (
        "WER en", "WER zh", "WER all", "CER all", "33.33%", "<0.0002", "200", "201",
        "fewer errors on 1 utterances, more on 30, as many on 170",
        "u050 (en): 1 → 0 errors of 4", "A  turn on the [light → ∅]", "B  turn on the light", "u000 (en)", "u001 (en)",
        "B is significantly higher than A",
    ):  # fmt: skip
        assert part in said, part
    assert "u002" not in said and max(map(len, said.splitlines())) <= 100 and "…" not in said
    assert said.count("\n") == len(said.splitlines())


def test_large_corpora_fit_into_100_columns(files: tuple[Path, Path]) -> None:
    found = compare(*(read_source(path) for path in files))
    many = EditCounts(1_234_567, 123_456, 98_765, 87_654)
    far = Difference(1.2345, 2.3456, 1.1111, -0.123, 1.234, 0.0123)
    row = Row(utterances=1_000_000, wer=far, cer=far, edits_a=many, edits_b=many)
    out = StringIO()
    languages = dict.fromkeys(("en", "yue", "zh"), row)
    print_comparison(replace(found, overall=row, languages=languages), 0, Console(file=out, width=100))
    assert "…" not in out.getvalue() and "1,456,788" in out.getvalue() and "123,456 → 123,456" in out.getvalue()


def test_the_exit_code_says_worse_when_asked(files: tuple[Path, Path]) -> None:
    a, b = map(str, files)
    assert cli.main(["compare", a, b, "--fail-if-worse"]) == 1
    assert cli.main(["compare", b, a, "--fail-if-worse"]) == 0
    assert cli.main(["compare", a, a, "--fail-if-worse"]) == 0
    assert cli.main(["compare", a, str(files[0].parent / "none.jsonl")]) == 2
    assert cli.main(["compare", a, b, "--changed", "-1"]) == 2


def test_json_is_the_same_each_time_and_has_no_number_beside_it(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for _ in range(2):
        assert cli.main(["compare", *map(str, files), "--json", "--changed", "1", "--fail-if-worse"]) == 1
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    found = json.loads(said[0])
    assert found["worse"] is True and found["utterances"] == 201
    assert found["wer"]["difference"] == pytest.approx(29 / 803) and found["wer"]["low"] > 0
    assert (found["improved"], found["worsened"]) == (1, 30)
    assert [item["id"] for item in found["most_worsened"]] == ["u000"]
    assert list(found["languages"]) == ["en", "zh"] and found["warnings"] == []


def test_identical_inputs(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(files[0]), str(files[0])]) == 0
    said = capsys.readouterr().out
    assert "no significant difference (p=1.0000" in said and "most" not in said
