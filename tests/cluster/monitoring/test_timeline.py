"""The timeline is a Chrome trace, and idle is what no span covers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.monitoring.timeline import Timeline, idle_fractions, lanes
from speech.errors import UserError
from speech.runtime.spans import Span


def test_idle_fractions_are_means_over_a_components_actors() -> None:
    spans = {
        "engine 0": [Span("generate", 8.0, 12.0), Span("generate", 11.0, 15.0)],
        "engine 1": [Span("generate", 10.0, 20.0)],
        "learner 0": [],
    }
    assert idle_fractions(spans, 10.0, 20.0) == {
        "time/idle_fraction/engine": pytest.approx(0.25),
        "time/idle_fraction/learner": 1.0,
    }
    assert idle_fractions({"engine 0": []}, 10.0, 10.0) == {"time/idle_fraction/engine": 0.0}


def test_overlapping_spans_take_lanes_and_give_them_back() -> None:
    a, b, c = Span("a", 0.0, 4.0), Span("b", 1.0, 2.0), Span("c", 2.0, 3.0)
    assert lanes([c, b, a]) == [(0, a), (1, b), (1, c)]


def test_the_file_is_a_trace_at_every_moment(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.json", first=1000)
    timeline.append(1, {"controller": [Span("learn", 1.0, 1.5)], "engine 0": [Span("generate", 1.25, 2.0)]})
    timeline.append(2, {"engine 0": [Span("update", 2.0, 2.5)], "learner 0": []})
    resumed = Timeline(tmp_path / "timeline.json", first=2000)
    resumed.append(2, {"engine 0": [Span("update", 3.0, 3.5)]})
    text = (tmp_path / "timeline.json").read_text(encoding="utf-8")
    events = json.loads(text.rstrip().rstrip(",") + "]")
    assert sorted({event["pid"] for event in events}) == [1000, 1001, 1002, 2000]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    work = [event for event in events if event["ph"] == "X"]
    assert [(names[e["pid"]], e["name"], e["ts"], e["dur"], e["args"]["step"]) for e in work] == [
        ("controller", "learn", 1_000_000, 500_000, 1),
        ("engine 0", "generate", 1_250_000, 750_000, 1),
        ("engine 0", "update", 2_000_000, 500_000, 2),
        ("engine 0", "update", 3_000_000, 500_000, 2),
    ]


@pytest.mark.parametrize("kept", [1, 40, 250])
def test_what_a_full_disk_has_cut_off_does_not_spoil_the_trace(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "timeline.json"
    Timeline(path, first=1000).append(1, {"controller": [Span("learn", 1.0, 1.5), Span("learn", 2.0, 2.5)]})
    path.write_bytes(path.read_bytes()[:kept])
    Timeline(path, first=2000).append(2, {"controller": [Span("publish", 3.0, 3.5)]})
    events = json.loads(path.read_text(encoding="utf-8").rstrip().rstrip(",") + "]")
    assert [event["name"] for event in events][-2:] == ["process_name", "publish"]


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"timeline.json: cannot write"):
        Timeline(tmp_path / "gone" / "timeline.json").append(1, {})
