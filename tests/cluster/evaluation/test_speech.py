"""What an evaluation of speech reports, of samples that were heard and of samples that failed."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.evaluation.speech import speech_scores
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
    scores = speech_scores([report(), long])
    assert scores.wer == pytest.approx(12 / 16)
    assert scores.wer_mean == pytest.approx(0.5)
    assert scores.wer_second == scores.wer_second_mean == pytest.approx(0.25)
    assert scores.duration_mean == 3.0 and scores.no_stop_rate == 0.5
    assert scores.failed == 0


def test_what_failed_is_counted_and_not_scored() -> None:
    broken = report(edits=None, heard=None, speaker_similarity=None, problems=("judge error: out of memory",))
    scores = speech_scores([report(), broken])
    assert scores.wer == 0.0 and scores.speaker_similarity == 0.8
    assert scores.failed == 1 and scores.utterances == 2
    assert speech_scores([broken]).wer is None
