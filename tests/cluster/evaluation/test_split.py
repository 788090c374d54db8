"""Greedy figures with those of samples beside them."""

from __future__ import annotations

from typing import Any

from cluster.config import load_config
from cluster.evaluation.result import Evaluation
from cluster.evaluation.sampling import sample_once
from cluster.evaluation.scores import Scores
from cluster.evaluation.speech import speech_scores
from cluster.evaluation.split import with_samples
from speech.edits import EditCounts
from tests.cluster.evaluation.test_speech import report


def evaluation(errors: int, **changes: Any) -> Evaluation[Scores]:
    made = report(edits=EditCounts(hits=8 - errors, substitutions=errors), **changes)
    return Evaluation(speech_scores([made]), [{"id": "u", "hypothesis": f"{errors} wrong"}])


def test_samples_stand_below_the_greedy_figures() -> None:
    greedy, sampled = evaluation(2), evaluation(4, finished=False)
    both = with_samples(greedy, sampled)
    assert both.scores.sampled == sampled.scores
    assert both.by_id() == {"u": "2 wrong"}
    assert both.hypotheses[0]["sampled"]["hypothesis"] == "4 wrong"
    metrics = both.scores.metrics()
    assert (metrics["wer"], metrics["sampled/wer"], metrics["sampled/no_stop_rate"]) == (0.25, 0.5, 1.0)
    assert list(metrics) == [*greedy.scores.metrics(), *(f"sampled/{name}" for name in greedy.scores.metrics())]


def test_a_sample_is_drawn_as_in_training() -> None:
    given = ["name=n", "model.path=m", "data.train=t", "sampling.temperature=0.7", "evaluation.max_new_tokens=9"]
    sampling = sample_once(load_config(None, given))
    assert (sampling.group_size, sampling.temperature, sampling.max_new_tokens) == (1, 0.7, 9)
