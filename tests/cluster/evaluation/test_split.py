"""Greedy figures with those of samples beside them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.config import load_config
from cluster.evaluation.result import Evaluation
from cluster.evaluation.speech import speech_summary
from cluster.evaluation.split import flat_scores, sample_once, with_samples
from cluster.monitoring.tables import print_evaluation, print_summary
from speech.edits import EditCounts
from tests.cluster.evaluation.test_speech import report


def evaluation(errors: int, **changes: Any) -> Evaluation:
    made = report(edits=EditCounts(hits=8 - errors, substitutions=errors), **changes)
    return Evaluation(speech_summary([made]), [{"id": "u", "hypothesis": f"{errors} wrong"}])


def test_samples_stand_below_the_greedy_figures() -> None:
    both = with_samples(evaluation(2), evaluation(4, finished=False))
    assert both.summary["wer"] == 0.25 and both.summary["sampled"]["wer"] == 0.5
    assert both.summary["sampled"].keys() == both.summary.keys() - {"sampled"}
    assert both.by_id() == {"u": "2 wrong"}
    assert both.hypotheses[0]["sampled"]["hypothesis"] == "4 wrong"
    names = ("wer", "no_stop_rate", "absent")
    assert flat_scores(both.summary, names) == {
        "wer": 0.25, "no_stop_rate": 0.0, "sampled/wer": 0.5, "sampled/no_stop_rate": 1.0
    }  # fmt: skip
    assert flat_scores(evaluation(2).summary, ("wer",)) == {"wer": 0.25}


def test_a_sample_is_drawn_as_in_training() -> None:
    given = ["name=n", "model.path=m", "data.train=t", "sampling.temperature=0.7", "evaluation.max_new_tokens=9"]
    sampling = sample_once(load_config(None, given))
    assert (sampling.group_size, sampling.temperature, sampling.max_new_tokens) == (1, 0.7, 9)


def test_both_are_shown_in_eighty_columns(tmp_path: Path) -> None:
    out = StringIO()
    before = with_samples(evaluation(4), evaluation(8, finished=False)).summary
    after = with_samples(evaluation(2), evaluation(2)).summary
    print_summary({"before": before, "after": after}, [], tmp_path, Console(file=out, width=80))
    text = out.getvalue()
    assert text.count("  sampled") == 2 and "…" not in text
    for part in ("50.00%", "100.00%", "100.0%", "WER changed by -50.0%", "WER of samples changed by -75.0%"):
        assert part in text
    print_evaluation(before, 0, Path("h.jsonl"), Console(file=out, width=80))
    assert out.getvalue().count("  sampled") == 3


def test_an_unknown_greedy_rate_is_no_change(tmp_path: Path) -> None:
    failed = speech_summary([report(edits=None)])
    out = StringIO()
    print_summary({"before": failed, "after": failed}, [], tmp_path, Console(file=out, width=80))
    assert "relative" not in out.getvalue()


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_evaluation_alone_is_shown(when: str, tmp_path: Path) -> None:
    out = StringIO()
    print_summary({when: evaluation(2).summary}, [], tmp_path, Console(file=out, width=80))
    assert when in out.getvalue() and "sampled" not in out.getvalue()
