"""Each rule: figures that make it warn, and figures that keep it silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.report import rules
from cluster.report.rules import RULES, Facts, Verdict, verdicts
from cluster.report.runs import RunRecord
from speech.edits import EditCounts
from tests.cluster.report.conftest import said

ROOT = Path(__file__).parents[3]
RISING = [0.1 * i for i in range(20)]
FLAT = [1.0, 1.01] * 10


def facts(
    columns: Mapping[str, Sequence[float]] | None = None,
    *,
    scores: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
    lines: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = ((), ()),
    judged: tuple[tuple[int, int, int], ...] = (),
    shares: Mapping[str, float] | None = None,
) -> Facts:
    """A run's facts: columns of metrics; scores and lines before and after; shares of parts; and S, D, I by the
    training judge before and after, and by the second."""
    count = max((len(values) for values in (columns or {}).values()), default=0)
    metrics = [{"step": i + 1} | {name: values[i] for name, values in (columns or {}).items()} for i in range(count)]
    evaluations = {
        stage: {"summary": dict(scores[place]) if scores else {}, "hypotheses": lines[place]}
        for place, stage in enumerate(("before", "after"))
        if scores or lines[place]
    }
    edits = [EditCounts(100, *counts) for counts in judged]
    judges = {"training judge": edits[:2], "second judge": edits[2:]} if judged else {}
    by_judge = {judge: dict(zip(("before", "after"), its, strict=True)) for judge, its in judges.items()}
    return Facts(RunRecord("r", Path(), metrics=metrics, evaluations=evaluations), by_judge, shares or {})


def second(before: float, after: float) -> tuple[dict[str, float], dict[str, float]]:
    return {"wer_second": before}, {"wer_second": after}


def speech(text: str, seconds: float) -> list[dict[str, Any]]:
    return [said("u", "turn on the light", text, text, seconds=seconds)]


CASES: dict[Callable[[Facts], Verdict], tuple[Facts, Facts]] = {
    rules.reward_against_second_judge: (
        facts({"reward/mean": RISING}, scores=second(0.2, 0.3)),
        facts({"reward/mean": RISING}, scores=second(0.3, 0.2)),
    ),
    rules.second_judge_confirms_less: (
        facts(judged=((107, 5, 73), (34, 1, 3), (96, 11, 182), (91, 10, 40))),
        facts(judged=((107, 5, 73), (34, 1, 3), (96, 11, 182), (50, 8, 40))),
    ),
    rules.result_is_worse: (facts(scores=({"wer": 0.1}, {"wer": 0.2})), facts(scores=({"wer": 0.2}, {"wer": 0.1}))),
    rules.length_drifts: (
        facts({"rollout/length_mean": [10 + 0.5 * i for i in range(20)]}),
        facts({"rollout/length_mean": [10 + 0.05 * i for i in range(20)]}),
    ),
    rules.samples_are_cut_off: (
        facts({"rollout/no_stop_share": [0.0] * 10 + [0.2] * 10}),
        facts({"rollout/no_stop_share": [0.2] * 10 + [0.01] * 10}),
    ),
    rules.entropy_collapses: (
        facts({"learner/entropy": [2.0] * 10 + [0.3] * 10}),
        facts({"learner/entropy": [2.0] * 10 + [1.0] * 10}),
    ),
    rules.invalid_share_rises: (
        facts({"reward/invalid": [0.0] * 10 + [8.0] * 10, "rollout/trajectories": [100.0] * 20}),
        facts({"reward/invalid": [0.0, 1.0] * 10, "rollout/trajectories": [100.0] * 20}),
    ),
    rules.groups_teach_nothing: (
        facts({"reward/zero_variance_share": [0.1] * 10 + [0.7] * 10}),
        facts({"reward/zero_variance_share": [0.7] * 10 + [0.4] * 10}),
    ),
    rules.logprob_gap_drifts: (
        facts({"logprob_gap/mean": [1e-6 * (1 + i) for i in range(20)]}),
        facts({"logprob_gap/mean": [1e-6, 3e-6] * 10}),
    ),
    rules.one_part_dominates: (
        facts(shares={"accuracy": 0.95, "keyword": 0.05}),
        facts(shares={"accuracy": 0.7, "keyword": 0.3}),
    ),
    rules.speech_gets_faster: (
        facts(lines=(speech("turn on the light", 2.0), speech("turn on the light", 1.5))),
        facts(lines=(speech("turn on the light and more of it", 4.0), speech("turn on the light", 2.0))),
    ),
}


@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_a_rule_warns_and_is_silent(check: Callable[[Facts], Verdict]) -> None:
    fires, silent = CASES[check]
    assert check(fires).state == "warning", check(fires)
    assert check(silent).state == "silent", check(silent)
    assert check(fires).text != check(silent).text


@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_without_figures_nothing_is_said(check: Callable[[Facts], Verdict]) -> None:
    assert check(facts()).state == "unknown"


def test_every_rule_has_its_case() -> None:
    assert [rule.check for rule in RULES] == list(CASES)


def test_a_reward_that_stays_is_no_hacking() -> None:
    assert rules.reward_against_second_judge(facts({"reward/mean": FLAT}, scores=second(0.2, 0.3))).state == "silent"


def test_the_second_judge_of_the_validation_counts_too() -> None:
    found = facts({"reward/mean": RISING, "valid/wer_second": [0.1 + 0.01 * i for i in range(20)]})
    assert rules.reward_against_second_judge(found).state == "warning"


def test_the_demos_figures() -> None:
    """S of the second judge: 96 → 91, where the training judge hears 107 → 34."""
    text = rules.second_judge_confirms_less(CASES[rules.second_judge_confirms_less][0]).text
    assert text.startswith("Not confirmed: substitutions 107 → 34 by the training judge, 96 → 91 by the second.")
    assert "Confirmed: deletions" in text and "insertions 73 → 3" in text


def test_warnings_come_first() -> None:
    states = [verdict.state for _, verdict in verdicts(facts(scores=({"wer": 0.1}, {"wer": 0.2})))]
    assert states[0] == "warning" and set(states[1:]) == {"unknown"} and len(states) == len(RULES)


def test_the_page_of_the_docs_has_a_row_per_rule() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert [rule.title for rule in RULES if f"| {rule.title} |" not in text] == []
