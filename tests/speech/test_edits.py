from __future__ import annotations

from collections.abc import Sequence

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.edits import (
    EditCounts,
    TranscriptPair,
    aligned_units,
    character_edits,
    corpus_rates,
    unit_edits,
    whisper_rate,
    word_edits,
)

WORDS = st.lists(st.sampled_from(["anna", "light", "red", "go", "stop"]), max_size=8).map(" ".join)


def test_words_and_characters() -> None:
    counts = word_edits("Turn the red light on.", "turn a red light on now", "en")
    assert counts == EditCounts(hits=4, substitutions=1, deletions=0, insertions=1, longest_insertion=1)
    assert counts.rate == pytest.approx(2 / 5)
    assert character_edits("red", "bed", "en").rate == pytest.approx(1 / 3)
    assert character_edits("a b", "ab", "en") == EditCounts(hits=2, deletions=1)


def test_chinese_is_scored_by_character() -> None:
    counts = word_edits("打开客厅的灯。", "打开客厅灯", "zh")
    assert counts == EditCounts(hits=5, deletions=1)
    assert character_edits("打开客厅的灯。", "打开客厅灯", "zh") == counts
    assert word_edits("打开客厅的灯", "打开客厅灯", None) == counts


def test_empty_sides() -> None:
    assert word_edits("", "", "en").rate == 0.0
    assert word_edits("", "a b c", "en") == EditCounts(insertions=3, longest_insertion=3)
    assert word_edits("", "a b c", "en").rate == 3.0
    assert word_edits("a b", "", "en") == EditCounts(deletions=2)
    assert word_edits("…", "。", None) == EditCounts()


def test_written_forms_are_no_errors() -> None:
    assert word_edits("I can't pay $21.", "i can not pay twenty one dollars", "en").errors == 0
    assert word_edits("我有25块钱", "我有二十五块钱", "zh").errors == 0


@given(WORDS, WORDS)
def test_lengths_and_bounds(reference: str, hypothesis: str) -> None:
    counts = word_edits(reference, hypothesis, "en")
    assert counts.reference_length == len(reference.split())
    assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis.split())
    assert counts.errors <= max(len(reference.split()), len(hypothesis.split()))
    assert counts.longest_insertion <= counts.insertions
    assert (counts.errors == 0) == (reference == hypothesis)


@given(*[st.lists(st.sampled_from(["a", "b", "c d", " "]), max_size=40)] * 2)
def test_units_are_compared_as_they_are(reference: list[str], hypothesis: list[str]) -> None:
    """The counts are those of jiwer's own alignment of texts in which each unit is a word without a space; also where
    several alignments have equally many errors."""

    def text(units: Sequence[str]) -> str:
        return " ".join(unit.replace(" ", "_") for unit in units)

    counts = unit_edits(reference, hypothesis)
    expected = jiwer.process_words(text(reference), text(hypothesis))
    inserted = [c.hyp_end_idx - c.hyp_start_idx for c in expected.alignments[0] if c.type == "insert"]
    assert counts == EditCounts(
        expected.hits, expected.substitutions, expected.deletions, expected.insertions, max(inserted, default=0)
    )


@given(*[st.lists(st.sampled_from(["a", "b", "c d"]), max_size=20)] * 2)
def test_an_alignment_is_both_texts_and_has_the_counted_errors(reference: list[str], hypothesis: list[str]) -> None:
    parts, counts = aligned_units(reference, hypothesis), unit_edits(reference, hypothesis)
    assert [unit for part in parts for unit in part.reference] == reference
    assert [unit for part in parts for unit in part.hypothesis] == hypothesis
    of = {kind: [part for part in parts if part.kind == kind] for kind in ("equal", "substitute", "delete", "insert")}
    assert sum(len(part.reference) for part in of["equal"]) == counts.hits
    assert sum(len(part.reference) for part in of["substitute"]) == counts.substitutions
    assert sum(len(part.reference) for part in of["delete"]) == counts.deletions
    assert sum(len(part.hypothesis) for part in of["insert"]) == counts.insertions


def test_counts_add() -> None:
    total = EditCounts(1, 2, 3, 4, 2) + EditCounts(1, 1, 1, 1, 1)
    assert total == EditCounts(2, 3, 4, 5, 2)


def test_corpus_rates() -> None:
    pairs = [
        TranscriptPair("red light on", "red light on", "en"),
        TranscriptPair("stop the red car", "stop red car car", "en"),
        TranscriptPair("打开灯", "打开的灯", "zh"),
    ]
    overall, languages = corpus_rates(pairs)
    english, chinese = languages["en"], languages["zh"]
    assert english.wer == pytest.approx(2 / 7)
    assert (english.words, english.utterances, english.sentence_error_rate) == (7, 2, 0.5)
    assert chinese.wer == chinese.cer == pytest.approx(1 / 3)
    assert (chinese.substitutions, chinese.deletions, chinese.insertions) == (0, 0, 1)
    assert overall.wer == pytest.approx(3 / 10) and overall.utterances == 3
    assert overall.wer_low <= overall.wer <= overall.wer_high
    assert corpus_rates(pairs) == (overall, languages), "the bootstrap is seeded"
    with pytest.raises(ValueError, match="no transcripts"):
        corpus_rates([])


def test_the_second_figure_is_by_whispers_rules_as_published() -> None:
    pairs = [TranscriptPair("It costs one dollar", "it costs one", "en"), TranscriptPair("don’t", "dont", None)]
    assert whisper_rate([*pairs, TranscriptPair("打开灯", "", "zh")]) == pytest.approx(2 / 5), "do not → dont"
    assert corpus_rates(pairs).overall.wer == pytest.approx(3 / 5)
    assert whisper_rate([TranscriptPair("打开灯", "", "zh")]) is None


def test_interval_narrows_with_more_utterances() -> None:
    pairs = [TranscriptPair("red light", "red light" if i % 3 else "red lamp", "en") for i in range(300)]
    few, many = corpus_rates(pairs[:30]).overall, corpus_rates(pairs).overall
    assert many.wer_high - many.wer_low < few.wer_high - few.wer_low
