"""What a user sees of scores."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cluster.evaluation.hallucinations import Hallucinations
from cluster.evaluation.result import Decoding
from cluster.evaluation.scores import Scores, TranscriptScores
from cluster.evaluation.speech import speech_scores
from cluster.evaluation.split import with_samples
from cluster.evaluation.tables import Example, print_evaluation, print_run
from cluster.evaluation.written import WrittenRates
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
    print_evaluation(before, 0, Path("h.jsonl"), console=Console(file=out, width=80))
    assert out.getvalue().count("  sampled") == 1


def test_what_stands_below_the_table_of_one_manifest() -> None:
    """Nothing is cut off in 100 columns, and what is absent is not shown as 0."""
    out = StringIO()
    written = WrittenRates(0.051, 0.092, 0.303)
    scores = replace(SCORES, written=written, hallucinations=Hallucinations({"u[1]": "loop"}, 7200.0))
    print_evaluation(scores, 0, Path("h.jsonl"), Decoding(4.0, 100.0), Console(file=out, width=100))
    for part in ("WER_C 5.10%, WER_PC 9.20%, PER 30.30%", "1, 0.5 per hour of audio: u[1]", "decoding: 0.040 (4.0 s"):
        assert part in out.getvalue()
    plain = StringIO()
    print_evaluation(SCORES, 0, Path("h.jsonl"), console=Console(file=plain, width=100))
    assert not any(word in plain.getvalue() for word in ("WER_C", "PER", "hallucinations", "real-time"))
    spoken = StringIO()
    broken = report(heard=None, edits=None, f0_mean=180.0, problems=("judge error",), prompt_id="evaluation/x")
    print_evaluation(speech_scores([broken, report()]), 0, Path("h"), console=Console(file=spoken, width=100))
    for part in ("100 %: 50.00%, second judge 25.00%", "F0 180 Hz", "failed: 1: x (judge error)"):
        assert part in spoken.getvalue()
    assert "DNSMOS" not in spoken.getvalue()
    assert all(len(line) <= 100 for shown in (out, plain, spoken) for line in shown.getvalue().splitlines())


def test_an_unknown_greedy_rate_is_no_change() -> None:
    failed = speech_scores([report(edits=None)])
    assert "relative" not in shown(failed, failed)


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_evaluation_alone_is_shown(when: str) -> None:
    scores = evaluation(2).scores
    text = shown(scores, None) if when == "before" else shown(None, scores)
    assert when in text and "sampled" not in text
