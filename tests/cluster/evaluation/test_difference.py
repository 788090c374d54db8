"""Which utterances of two files are compared, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluation.difference import compare
from cluster.evaluation.sources import read_source
from speech.errors import UserError
from speech.text import NORMALISER_VERSION


def jsonl(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def line(name: str, hypothesis: str | None, reference: str = "turn on the light", **more: Any) -> dict[str, Any]:
    return {"id": name, "hypothesis": hypothesis, "reference": reference, "language": "en", **more}


def spoken(name: str, heard: str | None, second: str | None, **more: Any) -> dict[str, Any]:
    rates = {"wer": None if heard is None else 0.0, "wer_second": None if second is None else 0.0}
    return line(name, heard, **({"hypothesis_second": second, "problems": []} | rates | more))


def test_common_utterances_are_compared_and_the_rest_is_named(tmp_path: Path) -> None:
    a = jsonl(
        tmp_path / "a.jsonl",
        line("one", "turn on the light"),
        line("two", "turn on"),
        line("gone", "turn on the light"),
        line("other", "stop", "stop"),
        line("tongue", "stop", "stop", language="de"),
    )
    b = jsonl(
        tmp_path / "b.jsonl",
        line("two", "Turn on the light!"),
        line("one", "turn the night"),
        line("new", "turn on the light"),
        line("other", "stop", "halt"),
        line("tongue", "stop", "stop"),
    )
    found = compare(read_source(a), read_source(b))
    assert [pair.id for pair in found.pairs] == ["one", "two"]
    assert (found.overall.wer.a, found.overall.wer.b, found.overall.wer.difference) == (0.25, 0.25, 0.0)
    assert (found.overall.edits_a.deletions, found.overall.edits_b.deletions) == (2, 1)
    out = found.left_out
    assert (out.only_a, out.only_b, out.other_reference) == (["gone"], ["new"], ["other", "tongue"])
    assert [w.partition(": ")[2] for w in found.warnings] == ["gone", "new", "other, tongue"]
    assert [p.id for p in found.most_improved(5)] == ["two"] and [p.id for p in found.most_worsened(5)] == ["one"]
    back = compare(read_source(b), read_source(a))
    assert back.most_improved(5)[0].id == "one" and back.pairs[0].more_errors == -found.pairs[0].more_errors


def test_a_reference_written_otherwise_is_the_same_one(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", line("u", "call 21", "Call twenty-one."))
    b = jsonl(tmp_path / "b.jsonl", line("u", "call 21", "call 21"))
    found = compare(read_source(a), read_source(b))
    assert found.overall.wer.b == found.overall.wer.a == 0.0 and not found.warnings


def test_one_file_may_lack_references_and_text_stands_for_the_hypothesis(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", {"id": 7, "hypothesis": "red lamp", "text": "red light"})
    b = jsonl(tmp_path / "b.jsonl", {"id": 7, "text": "red light"})
    found = compare(read_source(a), read_source(b))
    assert (found.overall.wer.a, found.overall.wer.b) == (0.5, 0.0) and found.pairs[0].id == "7"
    with pytest.raises(UserError, match="neither file has its `reference`"):
        compare(read_source(b), read_source(b))


def test_rows_are_by_language_and_differences_in_units(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", line("e", "turn on"), line("z", "打开", "打开灯", language="zh"))
    b = jsonl(tmp_path / "b.jsonl", line("e", "turn on the lamp"), line("z", "打开登", "打开灯", language="zh"))
    found = compare(read_source(a), read_source(b))
    assert list(found.languages) == ["en", "zh"]
    assert found.languages["en"].wer.difference == -0.25 and found.languages["zh"].wer.difference == 0.0
    assert found.languages["zh"].cer == found.languages["zh"].wer
    assert found.overall.wer.a == pytest.approx(3 / 7) and found.overall.wer.b == pytest.approx(2 / 7)
    chinese = found.to_json(1)["languages"]["zh"]["edits"]
    assert chinese == {"a": {"sub": 0, "del": 1, "ins": 0, "words": 3}, "b": {"sub": 1, "del": 0, "ins": 0, "words": 3}}
    (improved,) = found.to_json(1)["most_improved"]
    assert improved["a"]["edits"] == [{"kind": "delete", "reference": ["the", "light"], "hypothesis": []}]
    assert improved["b"]["edits"] == [{"kind": "substitute", "reference": ["light"], "hypothesis": ["lamp"]}]


def test_models_that_speak_are_compared_by_either_judge_and_failures_count_as_silence(tmp_path: Path) -> None:
    lines = spoken("x", "turn on the light", "turn on the night"), spoken("f", "turn on the light", "turn on the light")
    a = jsonl(tmp_path / "a.jsonl", *lines, spoken("n", "…", "…", wer=None, wer_second=None))
    broken = spoken("f", None, "turn on the light", problems=["judge error: out of memory"])
    b = jsonl(tmp_path / "b.jsonl", lines[0], broken, spoken("n", "ah", "ah"))
    found = compare(read_source(a), read_source(b))
    assert (found.overall.wer.a, found.overall.wer.b) == (0.0, 0.5)
    assert found.left_out.failed_b == {"f": "judge error: out of memory"} and found.left_out.unscored == ["n"]
    assert any("failed in" in warning and warning.endswith("silence: f") for warning in found.warnings)
    second = compare(read_source(a, "second"), read_source(b, "second"))
    assert second.overall.wer.a == second.overall.wer.b == pytest.approx(1 / 8)
    with pytest.raises(UserError, match="no transcripts of a second judge"):
        read_source(jsonl(tmp_path / "c.jsonl", line("x", "a")), "second")


def test_another_version_of_the_rules_is_told(tmp_path: Path) -> None:
    content = {
        "conditions": {},
        "summary": {"normaliser": "rules 0"},
        "rejected": {},
        "hypotheses": [line("u", "light")],
    }
    (tmp_path / "evaluation-after.json").write_text(json.dumps(content))
    b = jsonl(tmp_path / "b.jsonl", line("u", "light"))
    found = compare(read_source(tmp_path), read_source(b))
    (warning,) = found.warnings
    assert "rules 0" in warning and "evaluation-after.json" in warning and "b.jsonl" not in warning
    (tmp_path / "b.summary.json").write_text(json.dumps({"normaliser": NORMALISER_VERSION}))
    assert read_source(b).normaliser == NORMALISER_VERSION


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no hypotheses"),
        ("{", "neither an evaluation of a run nor jsonl"),
        ('{"id": 1}', "needs `id`, and `hypothesis` or `text`"),
        ("[1]", "needs `id`, and `hypothesis` or `text`"),
        ('{"id": 1, "text": 2}', "is no text"),
        ('{"id": 1, "text": "a"}\n{"id": 1, "text": "a"}', "'1' occurs twice"),
    ],
)
def test_what_is_no_file_of_hypotheses_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_source(path)
    assert "h.jsonl" in str(error.value)


def test_missing_files_and_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation-after\.json: cannot be read"):
        read_source(tmp_path)
    a, b = jsonl(tmp_path / "a.jsonl", line("a", "x")), jsonl(tmp_path / "b.jsonl", line("b", "x"))
    with pytest.raises(UserError, match="an utterance in common"):
        compare(read_source(a), read_source(b))
    c = jsonl(tmp_path / "c.jsonl", line("a", "x", "another"))
    with pytest.raises(UserError, match="the same references"):
        compare(read_source(a), read_source(c))
