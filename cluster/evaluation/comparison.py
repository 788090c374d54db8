"""Two evaluations of one split on what both could evaluate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.evaluation.result import Evaluation
from cluster.evaluation.scores import SAMPLED, Scores, SpeechScores, TranscriptScores
from cluster.evaluation.speech import report_of, speech_scores
from cluster.evaluation.transcripts import transcript_scores
from speech.errors import UserError

_SCORED: dict[type[Scores], Callable[[Sequence[Mapping[str, Any]]], Scores]] = {
    TranscriptScores: transcript_scores,
    SpeechScores: lambda lines: speech_scores([report_of(line) for line in lines]),
}
"""How scores of a kind are made of hypotheses again."""


def can_be_restricted(kind: type[Scores]) -> bool:
    return kind in _SCORED


def on_common_utterances(
    before: Evaluation[Scores], after: Evaluation[Scores]
) -> tuple[Evaluation[Scores], Evaluation[Scores]]:
    """Both as if only those utterances had been evaluated that both have: what one of them lacks changes its rates.

    Raises:
        UserError: there are none.
        KeyError: scores that cannot be restricted (`can_be_restricted`).
    """
    common = before.by_id().keys() & after.by_id().keys()
    if not common:
        raise UserError("the evaluations before and after training have no utterance in common")
    return _restricted(before, common), _restricted(after, common)


def _restricted(evaluation: Evaluation[Scores], ids: Collection[str]) -> Evaluation[Scores]:
    lines = [line for line in evaluation.hypotheses if line["id"] in ids]
    if len(lines) == len(evaluation.hypotheses):
        return evaluation
    scores_of = _SCORED[type(evaluation.scores)]
    scores = scores_of(lines)
    if evaluation.scores.sampled is not None:
        sampled = [line[SAMPLED] for line in lines if line[SAMPLED] is not None]
        scores = replace(scores, sampled=scores_of(sampled))
    return Evaluation(scores, lines, evaluation.bad)
