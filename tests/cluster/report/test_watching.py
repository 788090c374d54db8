"""`speechrl top`: a folder that grows, and what is shown of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from cluster.cli import main
from cluster.commands.results.top import RECENT, render, sparkline
from cluster.report import watching
from cluster.report.watching import FolderSource, Tail


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: demo\nsteps: 100\n")
    steps(folder, range(1, 31))
    log = [
        {"level": "INFO", "step": 1, "message": "step finished"},
        {"level": "WARNING", "step": 7, "message": "engine 0 was lost\nTraceback"},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def steps(folder: Path, numbers: range, mode: str = "a") -> None:
    with (folder / "metrics.jsonl").open(mode) as file:
        for step in numbers:
            values = {"reward/mean": step / 10, "learner/entropy": 1 / step, "time/step": 2.0, "fleet/healthy": 1.0}
            file.write(json.dumps({"step": step, **values, "reward_part/accuracy": 0.5, "time/learn": 1.0}) + "\n")


def shown(folder: Path) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(render(FolderSource(folder).look()))
    return console.export_text()


def test_what_is_shown(run: Path) -> None:
    text = shown(run)
    for expected in ("demo", "step 30/100", "2.0 s a step", "2 min left", "step 7: engine 0 was lost", "healthy 1"):
        assert expected in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("reward")]
    assert "2.550" in line and "1.550" in line, f"means of the last {RECENT} steps and of those before"
    assert "step finished" not in text and "Traceback" not in text
    assert "The entropy collapses" in text


def test_a_run_that_has_ended_says_so(run: Path) -> None:
    (run / "summary.json").write_text('{"status": "completed"}')
    assert "completed" in shown(run) and "left" not in shown(run).splitlines()[0]


def test_a_run_before_its_first_step(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert "no step has ended yet" in shown(run)


def test_a_tail_follows_a_file(run: Path) -> None:
    tail = Tail(run / "metrics.jsonl", by_step=True)
    assert [line["step"] for line in tail.lines()] == [*range(1, 31)]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')  # in the middle of a write
        file.flush()
        assert len(tail.lines()) == 30
        file.write('1, "x": 1}\n')
    assert tail.lines()[-1] == {"step": 31, "x": 1}


def test_a_tail_follows_a_run_that_falls_back(run: Path) -> None:
    tail = Tail(run / "metrics.jsonl", by_step=True)
    tail.lines()
    steps(run, range(1, 11), "w")
    assert [line["step"] for line in tail.lines()] == [*range(1, 11)]
    before = (run / "metrics.jsonl").stat().st_size
    steps(run, range(1, 9), "w")  # cut and grown beyond what was read, between two looks
    while (run / "metrics.jsonl").stat().st_size <= before:
        steps(run, range(9, 20))
    assert [line["step"] for line in tail.lines()][-1] == 19


def test_of_a_long_file_the_end_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TAIL_BYTES", 1_000)
    found = [line["step"] for line in Tail(run / "metrics.jsonl", by_step=True).lines()]
    assert found == [*range(found[0], 31)] and 1 < found[0] < 30


def test_curves_of_one_line() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█" and sparkline([3.0, 3.0]) == "▁▁"
    assert len(sparkline([math.sin(x) for x in range(40)])) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name the folder of a run"), (["absent"], "no run is there"), (["x", "--address", "http://h:1"], "name the")],
)
def test_what_cannot_be_shown(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *arguments]) == 2
    assert message in capsys.readouterr().err
