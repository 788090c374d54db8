"""What an evaluation of speech reports, of samples that were heard and of samples that failed."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.evaluation.speech import speech_summary
from cluster.monitoring.tables import print_summary
from rewards.report import SampleReport
from speech.edits import EditCounts


def report(**changes: Any) -> SampleReport:
    fields: dict[str, Any] = {
        "prompt_id": "evaluation/u",
        "index": 0,
        "text": "a b c d",
        "language": "en",
        "heard": "a b c d",
        "heard_second": "a b c x",
        "edits": EditCounts(hits=4),
        "edits_second": EditCounts(hits=3, substitutions=1),
        "speaker_similarity": 0.8,
        "seconds": 2.0,
        "f0_std": 1.5,
        "finished": True,
    }
    return SampleReport(**(fields | changes))


def test_corpus_rates_weigh_by_length_and_means_do_not() -> None:
    long = report(edits=EditCounts(hits=0, deletions=12), seconds=4.0, finished=False)
    summary = speech_summary([report(), long])
    assert summary["wer"] == pytest.approx(12 / 16)
    assert summary["wer_mean"] == pytest.approx(0.5)
    assert summary["wer_second"] == summary["wer_second_mean"] == pytest.approx(0.25)
    assert summary["duration_mean"] == 3.0 and summary["no_stop_rate"] == 0.5
    assert summary["failed"] == 0


def test_what_failed_is_counted_and_not_scored() -> None:
    broken = report(edits=None, heard=None, speaker_similarity=None, problems=("judge error: out of memory",))
    summary = speech_summary([report(), broken])
    assert summary["wer"] == 0.0 and summary["speaker_similarity"] == 0.8
    assert summary["failed"] == 1 and summary["utterances"] == 2
    assert speech_summary([broken])["wer"] is None


def test_the_summary_of_speech_is_a_table_of_both_judges(tmp_path: Path) -> None:
    out = StringIO()
    before, after = speech_summary([report(edits=EditCounts(hits=2, deletions=2))]), speech_summary([report()])
    print_summary({"before": before, "after": after}, [], tmp_path, Console(file=out, width=120))
    text = out.getvalue()
    assert "second" in text and "50.00%" in text and "25.00%" in text and "0.800" in text
    assert "-100.0% relative" in text
