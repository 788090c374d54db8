"""WER_C, WER_PC and PER: hand-computed values, what must hold of them, and when they are absent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.evaluation.written import WrittenRates, case_units, punctuation_edits, written_rates, written_units
from speech.edits import EditCounts, TranscriptPair, unit_edits

TOKENS = st.lists(st.sampled_from("Hello hello, world world. it's It's a-b ? – “So Paris, 3.5".split()), max_size=12)
TEXTS = TOKENS.map(" ".join)


def english(*pairs: tuple[str, str]) -> WrittenRates:
    return written_rates([TranscriptPair(reference, hypothesis, "en") for reference, hypothesis in pairs])


@pytest.mark.parametrize(
    ("reference", "hypothesis", "correct", "substituted", "deleted", "inserted"),
    [
        ("Hi, dear. Nice to see you.", "Hi, dear. Nice to see you.", 3, 0, 0, 0),
        ("Hi, dear. Nice to see you.", "hi dear nice to see you", 0, 0, 3, 0),
        ("Hi, dear. Nice to see you.", "Hi, dear, nice to see you?", 1, 2, 0, 0),
        ("Hi dear", "Hi, dear.", 0, 0, 0, 2),
        ("Is it on? Yes.", "is it off. Yes?", 0, 2, 0, 0),
        ("One, two, three.", "One two, three four.", 2, 0, 1, 0),
        ("It costs 3.5, or 1,000.", "It costs 3.5 or 1,000.", 1, 0, 1, 0),
        ("Wait – what?", "Wait: what?", 1, 0, 0, 0),
        ("Stop. Go.", "Stop. Go, now.", 2, 0, 0, 1),
        ("", "Hm.", 0, 0, 0, 1),
        ("Yes.", "", 0, 0, 1, 0),
    ],
)
def test_marks_by_hand(
    reference: str, hypothesis: str, correct: int, substituted: int, deleted: int, inserted: int
) -> None:
    expected = EditCounts(correct, substituted, deleted, inserted)
    assert punctuation_edits(reference, hypothesis, "en") == expected


def test_per_is_over_all_operations() -> None:
    """1 correct, 1 substituted, 1 deleted; and 2 correct, 1 inserted: 3 of 6."""
    rates = english(("Red, green. Blue.", "Red, green? Blue"), ("Stop. Go.", "Stop. Go, now."))
    assert rates.per == pytest.approx(3 / 6)


def test_case_and_punctuation_by_hand() -> None:
    """Three of seven words are wrong as written; without punctuation two, without case none."""
    rates = english(("Call Anna, please. It's 3.5 pm.", "call Anna please. it’s 3.5 pm."))
    assert (rates.wer_c, rates.wer_pc) == (pytest.approx(2 / 6), pytest.approx(3 / 6))
    assert written_units("“Yes , she said – no .") == ["“Yes,", "she", "said–", "no."]
    assert case_units("“Yes , she said – no .") == ["Yes", "she", "said", "no"]


@given(TEXTS, TEXTS)
def test_what_more_is_compared_is_never_less_wrong(reference: str, hypothesis: str) -> None:
    both = unit_edits(written_units(reference), written_units(hypothesis))
    case = unit_edits(case_units(reference), case_units(hypothesis))
    plain = unit_edits(*([unit.lower() for unit in case_units(text)] for text in (reference, hypothesis)))
    assert both.reference_length == case.reference_length == plain.reference_length
    assert both.rate >= case.rate >= plain.rate


@given(TEXTS, TEXTS)
def test_marks_are_counted_once(reference: str, hypothesis: str) -> None:
    one, back = punctuation_edits(reference, hypothesis, "en"), punctuation_edits(hypothesis, reference, "en")
    assert one.hits + one.substitutions + one.deletions == back.hits + back.substitutions + back.insertions
    assert punctuation_edits(reference, reference, "en").errors == 0


@pytest.mark.parametrize("reference", ["turn on the light", "TURN ON THE LIGHT", "20 30", ""])
def test_references_without_case_and_punctuation_have_no_figure(reference: str) -> None:
    assert english((reference, "Turn on, the light.")) == WrittenRates(None, None, None)


def test_figures_are_of_the_languages_that_have_what_is_scored() -> None:
    plain, cased = TranscriptPair("stop", "Stop.", "de"), TranscriptPair("Stop it.", "stop it.", "en")
    rates = written_rates([plain, plain, cased])
    assert rates == WrittenRates(wer_c=0.5, wer_pc=0.5, per=0.0)
    # One capital among many lower-case references is a name, not case.
    few = [TranscriptPair("stop it", "Stop it", "en")] * 3 + [cased]
    assert written_rates(few) == WrittenRates(None, None, None)
    chinese = TranscriptPair("你好，打开灯。", "你好打开灯。", "zh")
    assert written_rates([chinese]) == WrittenRates(None, None, per=0.5)
    hindi = TranscriptPair("दीया जलाओ।", "दीया जलाओ", "hi")
    assert written_rates([hindi]) == WrittenRates(None, wer_pc=0.5, per=1.0)
    assert written_rates([]) == WrittenRates(None, None, None)
