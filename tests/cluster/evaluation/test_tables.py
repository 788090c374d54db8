"""What a user sees of scores."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cluster.evaluation.scores import Scores, TranscriptScores
from cluster.evaluation.speech import speech_scores
from cluster.evaluation.split import with_samples
from cluster.evaluation.tables import Example, print_evaluation, print_run
from speech.edits import EditCounts, ErrorRates
from tests.cluster.evaluation.test_speech import report
from tests.cluster.evaluation.test_split import evaluation

RATES = ErrorRates(
    wer=0.3,
    wer_low=0.28,
    wer_high=0.32,
    cer=0.12,
    cer_low=0.11,
    cer_high=0.13,
    sentence_error_rate=0.5,
    substitutions=20,
    deletions=5,
    insertions=5,
    words=1000,
    utterances=400,
)
SCORES = TranscriptScores(overall=RATES, languages={"en": RATES}, normaliser="n", wer_whisper=0.25)


def shown(
    before: Scores | None, after: Scores | None, *examples: Example, status: str = "completed", width: int = 80
) -> str:
    out = StringIO()
    print_run(before, after, examples, status, 40, 300.0, Path("runs/demo"), Console(file=out, width=width))
    return out.getvalue()


def test_a_run_shows_scores_and_transcripts() -> None:
    after = replace(SCORES, overall=replace(RATES, wer=0.24))
    text = shown(SCORES, after, Example("call anna", "call [hannah]", ""))
    for part in ("30.00%", "24.00%", "28.0 – 32.0%", "-20.0%", "call [hannah]", "(nothing)", "runs/demo", "40 steps"):
        assert part in text


def test_a_run_without_evaluation() -> None:
    text = shown(None, None, status="interrupted")
    assert "interrupted after 40 steps, 300 s" in text
    assert "WER" not in text


def test_scores_per_language() -> None:
    out = StringIO()
    languages = {"en": replace(RATES, wer=0.11), "zh": replace(RATES, wer=0.22)}
    scores = replace(SCORES, languages=languages)
    print_evaluation(scores, skipped=2, hypotheses=Path("out.jsonl"), console=Console(file=out, width=80))
    for part in ("en", "11.00%", "zh", "22.00%", "overall", "30.00%", "2 bad lines", "out.jsonl", "rules: 25.00%"):
        assert part in out.getvalue()


def test_scores_of_speech_are_of_both_judges() -> None:
    before, after = speech_scores([report(edits=EditCounts(hits=2, deletions=2))]), speech_scores([report()])
    text = shown(before, after, width=120)
    assert "second" in text and "50.00%" in text and "25.00%" in text and "0.800" in text
    assert "-100.0% relative" in text


def test_samples_are_shown_below_in_eighty_columns() -> None:
    before = with_samples(evaluation(4), evaluation(8, finished=False)).scores
    after = with_samples(evaluation(2), evaluation(2)).scores
    text = shown(before, after)
    assert text.count("  sampled") == 2 and "…" not in text
    for part in ("50.00%", "100.00%", "100.0%", "WER changed by -50.0%", "WER of samples changed by -75.0%"):
        assert part in text
    out = StringIO()
    print_evaluation(before, 0, Path("h.jsonl"), Console(file=out, width=80))
    assert out.getvalue().count("  sampled") == 1


def test_an_unknown_greedy_rate_is_no_change() -> None:
    failed = speech_scores([report(edits=None)])
    assert "relative" not in shown(failed, failed)


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_evaluation_alone_is_shown(when: str) -> None:
    scores = evaluation(2).scores
    text = shown(scores, None) if when == "before" else shown(None, scores)
    assert when in text and "sampled" not in text
