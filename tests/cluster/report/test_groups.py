"""Groups with what they teach; where time went; the timeline; the account."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.monitoring.timeline import Timeline
from cluster.report.groups import group_payload, part_shares, read_steps
from cluster.report.runs import RunRecord, read_run
from cluster.report.times import account, idle_rows, phase_rows, timeline, wall_notes
from cluster.runs.ledger import LedgerEntry
from speech.manifests.store import stored
from speech.records import Utterance
from speech.runtime.spans import Span
from tests.cluster.report.conftest import WriteRun, group

TWO = ["rewards.items=[{name: accuracy}, {name: keyword, weight: 2.0}]"]


def test_a_group_shows_what_it_teaches(write_run: WriteRun) -> None:
    samples = [
        ("turn on the night", {"accuracy": 0.5}),
        ("turn on the light", {"accuracy": 1.0}),
        ("turn on the light", {"accuracy": 1.0}),
        ("turn", None),
    ]
    ledger = [LedgerEntry("0/a", "trained"), LedgerEntry("0/b", "rejected", "no variance")]
    flat = group("b", "stop", [("stop", {"accuracy": 1.0})] * 2)
    run = read_run(write_run(groups={1: [group("a", "turn on the light", samples), flat]}, ledger=ledger))
    (found,) = group_payload([run], [read_steps(run, 5)])
    first, second = found["steps"][1]
    best, worse, failed = first["samples"]
    assert (best["count"], best["reward"], best["words"]) == (2, 1.0, [["=", "turn on the light"]])
    assert worse["words"][-1] == ["s", "light", "night"] and worse["advantage"] < 0 < best["advantage"]
    assert (failed["reward"], failed["advantage"], failed["invalid"]) == (None, 0.0, "judge timed out")
    assert first["outcome"] == "trained" and second["outcome"] == "rejected: no variance" and second["spread"] == 0
    rewards = np.array([0.5, 1.0, 1.0])
    assert best["advantage"] == pytest.approx((1 - rewards.mean()) / rewards.std(ddof=1), abs=1e-3)
    assert found["estimator"] == "group_std"


def test_code_that_a_run_names_is_not_run(write_run: WriteRun, tmp_path: Path) -> None:
    path = write_run(groups={1: [group("a", "stop", [("stop", {"accuracy": 1.0}), ("top", {"accuracy": 0.0})])]})
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("advantage: group_std", "advantage: antigravity:fly"))
    run = read_run(path)
    (found,) = group_payload([run], [read_steps(run, 5)])
    assert found["estimator"] == "reward less the group's mean"
    assert [sample["advantage"] for sample in found["steps"][1][0]["samples"]] == [0.5, -0.5]


def test_steps_are_spread(write_run: WriteRun) -> None:
    groups = {step: [group("a", "stop", [("stop", {"x": 1.0})])] for step in range(1, 11)}
    run = read_run(write_run(metrics=[{"x": 1.0}] * 10, groups=groups))
    assert list(read_steps(run, 4)) == [1, 4, 7, 10] and list(read_steps(run, 99)) == list(range(1, 11))
    (run.path / "rollouts" / "step-000004.jsonl").write_text("{broken\n{}\n")
    assert list(read_steps(run, 4)) == [1, 7, 10]


def test_shares_of_the_parts(write_run: WriteRun) -> None:
    """Totals 0, 1, 2, 3: `accuracy` gives 0 or 1, and `keyword` with its weight 0 or 2; they are independent."""
    samples = [("", {"accuracy": float(a), "keyword": float(k)}) for k in (0, 1) for a in (0, 1)]
    run = read_run(write_run(groups={1: [group("a", "stop", samples)]}, overrides=TWO))
    assert part_shares(run, read_steps(run, 1)) == pytest.approx({"accuracy": 0.2, "keyword": 0.8})
    same = read_run(write_run("b", groups={1: [group("a", "stop", samples[:1] * 2)]}))
    assert part_shares(same, read_steps(same, 1)) == {}
    normalised = read_run(
        write_run("c", groups={1: [group("a", "stop", samples)]}, overrides=[*TWO, "rewards.normalise_parts=true"])
    )
    assert part_shares(normalised, read_steps(normalised, 1)) == pytest.approx({"accuracy": 0.2, "keyword": 0.8})


def test_where_time_went() -> None:
    lines = [
        {"step": i, "time/step": 4.0, "time/generate": 2.0, "time/learn": 1.0, "time/idle_fraction/engine": 0.5}
        for i in (1, 2)
    ]
    run = RunRecord("r", Path("/nowhere"), metrics=lines)
    rows = {row["name"]: row for row in phase_rows(run)}
    assert rows["generate"] == {"name": "generate", "total": "4 s", "share": 0.5, "median": 2.0} and len(rows) == 2
    assert idle_rows(run) == [("engine", 0.5)] and wall_notes(run) == []


def test_the_log_says_how_long_it_was(write_run: WriteRun) -> None:
    path = write_run()
    stamps = ["2026-01-01T00:00:00.000+00:00", "2026-01-01T00:01:30.000+00:00"]
    (path / "log.jsonl").write_text("".join(json.dumps({"time": stamp}) + "\n" for stamp in stamps) + '{"time": "20')
    assert wall_notes(read_run(path))[0].startswith("90 s from the first line of the log to the last, 6 s of them")


def test_a_timeline_that_goes_on(write_run: WriteRun) -> None:
    path = write_run()
    writer = Timeline(path / "timeline.json")
    for step in (1, 2):
        writer.append(step, {"engine 0": [Span("generate", 100.0 + step, 101.0 + step)], "learner 0": []})
    with (path / "timeline.json").open("a") as file:
        file.write('{"name": "gen')
    (found,) = timeline([read_run(path)])
    assert found == {
        "actors": ["engine 0"],
        "names": ["generate"],
        "steps": {1: [[0, 0, 0, 0, 1000]], 2: [[0, 0, 0, 0, 1000]]},
    }


def test_the_account(write_run: WriteRun) -> None:
    path = write_run(ledger=[LedgerEntry("0/a", "trained"), LedgerEntry("1/a", "rejected", "no variance")])
    assert ("missing", "not known: the list of utterances in data/ cannot be read; ask `speechrl audit`") in account(
        read_run(path)
    )
    train = stored([Utterance(id=name, audio="/x/a.wav", text="stop") for name in "ab"])
    (path / "data").mkdir()
    (path / "data" / "train.utterances").write_bytes(train.to_bytes({}))
    rows = dict(account(read_run(path)))
    assert rows["trained"] == "1" and rows["rejected: no variance"] == "1"
    assert rows["missing from whole epochs"] == "1: 0/b" and rows["twice"] == "0"
