"""What an evaluation of speech reports, of samples that were heard and of samples that failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.evaluation.comparison import on_common_utterances
from cluster.evaluation.result import Evaluation
from cluster.evaluation.scores import Scores
from cluster.evaluation.speech import _line, report_of, speech_scores
from cluster.evaluation.split import with_samples
from cluster.runs.checkpoints import retained
from rewards.report import SampleReport
from speech.edits import EditCounts
from speech.records import Utterance


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
        "speaker_similarity_original": 0.7,
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


def test_before_and_after_are_compared_on_the_texts_of_both() -> None:
    """As if the others had never been asked for, in the samples too."""

    def evaluation(*named: tuple[str, SampleReport]) -> Evaluation[Scores]:
        utterances = [Utterance(id=name, audio="", text=item.text) for name, item in named]
        lines = [_line(utterance, item) for utterance, (_, item) in zip(utterances, named, strict=True)]
        greedy: Evaluation[Scores] = Evaluation(speech_scores([item for _, item in named]), lines)
        return with_samples(greedy, greedy)

    one, other = ("a", report()), ("b", report(heard="a b", edits=EditCounts(hits=2, deletions=2), finished=False))
    broken = {"edits": None, "heard": None, "f0_std": None, "problems": ("judge error: out of memory",)}
    lost = ("c", report(prompt_id="evaluation/c", **broken))
    before, after = on_common_utterances(evaluation(one, other, lost), evaluation(one, lost))
    assert before.scores == evaluation(one, lost).scores == after.scores
    before, after = on_common_utterances(evaluation(one, other), evaluation(other))
    assert before.scores == after.scores and after.scores == evaluation(other).scores
    assert before.scores.sampled == speech_scores([other[1]])


def test_figures_that_compare_with_others() -> None:
    """Each text counts alike, what failed is wrong in every word, and a text with nothing to say counts nowhere."""
    lost = report(heard=None, edits=None, prompt_id="evaluation/evaluation/x", problems=("judge error: late", "codec"))
    empty = report(text="…", edits=None, heard="a", seconds=9.0, prompt_id="evaluation/n", problems=("nothing to say",))
    short = report(text="Don't stop!", heard="don't go", heard_second="Don't, stop", seconds=0.5, f0_mean=120.0)
    scores = speech_scores([report(f0_mean=180.0, heard_second=None), short, lost, empty])
    assert scores.wer_seed_tts == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert scores.wer_seed_tts_second == pytest.approx((1 + 0 + 1 / 4) / 3)
    assert scores.f0_mean == 150.0 and scores.dnsmos is None
    assert scores.words_per_second == pytest.approx((4 + 3 + 4) / 4.5), "do not stop"
    assert scores.characters_per_second == pytest.approx((4 + len("donotstop") + 4) / 4.5)
    assert scores.failures == {"evaluation/x": "judge error: late; codec", "n": "nothing to say"}
    assert speech_scores([report(dnsmos=3.0), report(dnsmos=1.0)]).dnsmos == 2.0
    many = speech_scores([replace(lost, prompt_id=f"evaluation/{i}") for i in range(30)])
    assert many.failed == 30 and list(many.failures) == [str(i) for i in range(20)]


def test_no_figure_without_a_length_or_a_text() -> None:
    scores = speech_scores([report(seconds=None, heard=None, heard_second=None, edits=None, problems=("codec",))])
    assert (scores.characters_per_second, scores.words_per_second, scores.f0_mean) == (None, None, None)
    assert scores.wer_seed_tts == scores.wer_seed_tts_second == 1.0
    assert speech_scores([report(text="…")]).wer_seed_tts is None


def test_lines_hold_all_that_the_figures_are_made_of() -> None:
    made = [
        report(prompt_id="evaluation/a", f0_mean=99.0, dnsmos=2.5),
        report(prompt_id="evaluation/b", problems=("x",)),
    ]
    utterances = [Utterance(id=name, audio="", text="a b c d") for name in "ab"]
    lines = [_line(utterance, item) for utterance, item in zip(utterances, made, strict=True)]
    assert speech_scores([report_of(line) for line in lines]) == speech_scores(made)


def heard(errors: int | None) -> SampleReport:
    """A sample of four words on which the judge found so many errors; None: nobody could listen to it."""
    if errors is None:
        return report(edits=None, heard=None, problems=("judge error: out of memory",))
    return report(edits=EditCounts(hits=4 - min(errors, 4), deletions=min(errors, 4), insertions=max(errors - 4, 0)))


@given(st.lists(st.integers(0, 12), min_size=1), st.data())
def test_a_checkpoint_never_scores_better_by_failing(errors: list[int], data: st.DataObject) -> None:
    whole = speech_scores([heard(count) for count in errors])
    failing = data.draw(st.sets(st.integers(0, len(errors) - 1), min_size=1))
    part = speech_scores([heard(None if i in failing else count) for i, count in enumerate(errors)])
    assert whole.score is not None and part.score is not None and part.failed == len(failing)
    assert whole.score <= part.score <= 1.0
    if max(errors) <= 4:
        assert whole.score == whole.wer, "without more errors than words it is the WER"


def test_the_best_checkpoint_is_not_the_one_whose_samples_failed() -> None:
    sound = speech_scores([heard(1)] * 8)
    broken = speech_scores([heard(0)] * 3 + [heard(None)] * 5)
    assert sound.wer == 0.25 and broken.wer == 0.0, "of what could be heard"
    assert retained({1: sound.score, 2: broken.score, 3: None}, keep=1, keep_best=1) == {1, 3}
    assert speech_scores([heard(None)]).score == 1.0


@given(st.lists(st.integers(0, 6), min_size=1), st.data(), st.booleans())
def test_of_two_checkpoints_that_are_heard_alike_the_best_is_never_the_one_that_failed_more(
    errors: list[int], data: st.DataObject, newer: bool
) -> None:
    """Whichever is the newer one; a failure in the place of silence is a tie."""
    places = st.sets(st.integers(0, len(errors) - 1))
    few = data.draw(places)
    more = few | data.draw(places)
    assume(any(errors[place] < 4 for place in more - few))
    scores = [speech_scores([heard(None if i in lost else e) for i, e in enumerate(errors)]) for lost in (few, more)]
    assert scores[0].failed < scores[1].failed
    steps = {1 + newer: scores[0].score, 2 - newer: scores[1].score, 3: None}
    assert retained(steps, keep=1, keep_best=1) == {3, 1 + newer}


def test_a_text_that_nobody_can_score_counts_for_no_checkpoint() -> None:
    unscored = report(text="…", edits=None, problems=("the text has nothing to say",))
    assert speech_scores([report(), unscored]).score == 0.0
    assert speech_scores([unscored]).score is None
