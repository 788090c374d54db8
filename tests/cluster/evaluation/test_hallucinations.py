"""Hallucinations per hour of audio."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.evaluation.hallucinations import Hallucinations, broken_rule, hallucinations
from cluster.evaluation.transcripts import transcript_scores

LONG = "the quick brown fox jumps over the lazy dog and then it runs away from all of us into the dark green forest"


def line(hypothesis: str, seconds: float | None = 4.0, name: str = "u", **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "reference": "turn on the light",
        "hypothesis": hypothesis,
        "seconds": seconds,
        "language": "en",
        "finish_reason": "stop",
    } | more


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (line("turn on the light"), None),
        (line("x" * 0), None),
        (line(" " * 60 + LONG[:100]), None),  # in 4 s these are 1,500 a minute, which is not above it
        (line(LONG[:102]), "rate"),
        (line("turn on the light", seconds=0.5), None),  # as the reference
        (line("turn on the night", seconds=0.5), "rate"),
        (line("the the the the light"), "loop"),
        (line("turn on the hahahahahaha", seconds=9.0), "loop"),
        (line("the the the light"), None),
        (line("the the the light", finish_reason="length"), "loop"),
        (line("打开打开打开打开灯", reference="打开灯", language="zh"), "loop"),
        (line("no no no no no", reference="no no no no"), None),
    ],
)
def test_rules(given: dict[str, Any], rule: str | None) -> None:
    assert broken_rule(given) == rule


def test_they_are_counted_per_hour_of_all_audio_and_named() -> None:
    lines = [line("turn on the light", 1790.0, "a"), line("z" * 100, 3.0, "b"), line("go go go go", 7.0, "c")]
    found = hallucinations(lines)
    assert found == Hallucinations({"b": "rate", "c": "loop"}, 1800.0) and found.per_hour == 4.0
    content = found.to_json()
    assert content == {"per_hour": 4.0, "count": 2, "seconds": 1800.0, "ids": {"b": "rate", "c": "loop"}}
    assert Hallucinations.from_json(content) == found
    scores = transcript_scores(lines)
    assert scores.hallucinations == found
    assert "hallucinations: 2, 4.0 per hour of audio: b, c" in scores.notes()


def test_without_lengths_nothing_is_said() -> None:
    assert hallucinations([line("a", None)]) is None
    assert hallucinations([line("", 0.0)]) is None
    short = {key: value for key, value in line("a").items() if key != "seconds"}
    assert hallucinations([short]) is None and transcript_scores([short]).to_json()["hallucinations"] is None
