"""Reading runs: whole, unfinished, damaged; and what differs between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.report.runs import config_differences, read_run, read_runs
from speech.errors import UserError
from tests.cluster.report.conftest import WriteRun, heard


def test_a_whole_run(write_run: WriteRun) -> None:
    lines = [heard("u", "turn on the light", "turn on the night")]
    run = read_run(write_run(before=lines, after=[heard("u", "turn on the light", "turn on the light")]))
    assert (run.name, run.status, run.steps, run.notes) == ("r", "completed", [1, 2, 3], ())
    assert run.series("reward/mean") == [0.25] * 3 and run.series("nothing") == []
    assert run.score("before", "wer") == 0.25 and run.score("after", "wer") == 0.0
    assert run.config["sampling"]["group_size"] > 1


def test_a_run_that_goes_on(write_run: WriteRun) -> None:
    run = read_run(write_run(before=[heard("u", "a b", "a b")], status=None))
    assert run.status == "not ended" and run.hypotheses("after") == []
    assert any("goes on" in note for note in run.notes)


def test_a_last_line_that_was_cut_off(write_run: WriteRun) -> None:
    path = write_run()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward/me')
    assert read_run(path).steps == [1, 2, 3]


def test_a_damaged_evaluation_is_a_note(write_run: WriteRun) -> None:
    path = write_run(before=[heard("u", "a", "a")])
    (path / "evaluation-before.json").write_text('{"summary": ')
    run = read_run(path)
    assert not run.evaluations and any("evaluation-before.json cannot be read" in note for note in run.notes)


def test_nan_is_no_value(write_run: WriteRun) -> None:
    assert read_run(write_run(metrics=[{"x": 1.0}, {"x": float("nan")}, {"x": 3.0}])).series("x") == [1.0, 3.0]


def test_messages(write_run: WriteRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "gone")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is no run"):
        read_run(tmp_path / "other")
    path = write_run()
    with pytest.raises(UserError, match="named twice"):
        read_runs([path, f"{path}/"])
    metrics = path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('{"step": 2', '{"step": ', 1))
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not valid JSON"):
        read_run(path)


def test_names_tell_runs_apart(write_run: WriteRun, tmp_path: Path) -> None:
    first = write_run()
    second = tmp_path / "other" / "r"
    second.parent.mkdir()
    first.rename(second)
    assert [run.name for run in read_runs([write_run(), second])] == ["runs/r", "other/r"]


def test_differences_of_configurations(write_run: WriteRun) -> None:
    runs = [
        read_run(write_run("a")),
        read_run(write_run("b", overrides=["learner.lr=0.5"])),
        read_run(write_run("c", overrides=["seed=9"])),
    ]
    rows = {row.key: row.values for row in config_differences(runs)}
    assert rows.keys() == {"learner.lr", "seed"}
    assert rows["learner.lr"][1] == "0.5" and rows["learner.lr"][0] == rows["learner.lr"][2]
    assert rows["seed"][2] == "9" and rows["seed"][0] == rows["seed"][1]
    assert config_differences(runs[:1]) == []


def test_a_key_of_a_later_release_has_its_default(write_run: WriteRun) -> None:
    runs = [write_run("a"), write_run("b")]
    file = runs[0] / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("update:")))
    assert config_differences(read_runs(runs)) == []
