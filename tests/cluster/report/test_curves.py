"""Which curves a page has, and that long ones become short."""

from __future__ import annotations

import pytest

from cluster.report.curves import POINTS, curves
from cluster.report.runs import RunRecord


def panels(*runs: RunRecord) -> dict[str, dict]:
    return {panel["title"]: panel for section in curves(runs)["sections"] for panel in section["panels"]}


def record(name: str, **columns: list[float | None]) -> RunRecord:
    count = max(map(len, columns.values()))
    lines = [
        {"step": i + 1} | {key.replace("__", "/"): column[i] for key, column in columns.items() if i < len(column)}
        for i in range(count)
    ]
    return RunRecord(name, None, metrics=lines)  # type: ignore[arg-type]


def test_every_metric_is_somewhere_once() -> None:
    run = record("a", reward__mean=[1.0, 2.0], my__own=[3.0, 4.0], reward_part__accuracy=[0.0, 1.0], still=[7.0, 7.0])
    found = curves([run])
    assert found["flat"] == {"still": 7.0}
    assert sorted(panels(run)) == ["Reward", "accuracy", "own"]
    assert panels(run)["Reward"]["traces"] == [{"run": 0, "label": "mean", "y": [1.0, 2.0]}]


def test_runs_lie_over_each_other() -> None:
    one, other = record("a", rollout__wer=[0.5, 0.25]), record("b", rollout__wer=[0.5, None, 0.125])
    assert [trace["y"] for trace in panels(one, other)["Error rate while sampling"]["traces"]] == [
        [0.5, 0.25],
        [0.5, None, 0.125],
    ]
    assert [run["steps"] for run in curves([one, other])["runs"]] == [[1, 2], [1, 2, 3]]


def test_errors_per_word_come_from_the_reward_that_counts_them() -> None:
    prefix = "reward_detail__accuracy__"
    counts = {"substitutions": [2.0, 1.0], "deletions": [0.0, 0.5], "insertions": [1.0, 0.0]}
    columns = {prefix + kind: values for kind, values in counts.items()} | {prefix + "reference_length": [4.0, 5.0]}
    traces = {trace["label"]: trace["y"] for trace in panels(record("a", **columns))["Errors per word"]["traces"]}
    assert traces == {"substitutions": [0.5, 0.2], "deletions": [0.0, 0.1], "insertions": [0.25, 0.0]}


def test_a_long_run_has_the_means_of_stretches() -> None:
    count = 10 * POINTS
    found = curves(
        [record("a", reward__mean=[float(i % 10) for i in range(count)], x=[float(i) for i in range(count)])]
    )
    assert found["runs"][0]["steps"][0] == 10 and found["runs"][0]["steps"][-1] == count
    (reward,) = (
        trace for s in found["sections"] for p in s["panels"] for trace in p["traces"] if p["title"] == "Reward"
    )
    assert len(reward["y"]) == POINTS and reward["y"] == pytest.approx([4.5] * POINTS)


def test_a_run_without_steps() -> None:
    assert curves([RunRecord("a", None)])["sections"] == []  # type: ignore[arg-type]
