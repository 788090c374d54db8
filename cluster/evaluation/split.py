"""Evaluating a manifest with a running system: greedily, and on request also with one sample per utterance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.evaluation.result import Evaluation
from cluster.evaluation.sampling import evaluation_sampling, sample_once
from cluster.evaluation.scores import SAMPLED, Scores
from cluster.evaluation.speech import evaluate_speech
from cluster.evaluation.transcripts import evaluate
from rollout.config import SamplingConfig
from speech.records import Utterance

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from cluster.system import System


def evaluate_split(
    config: RunConfig, system: System, utterances: Sequence[Utterance], waves: Path | None = None
) -> Evaluation[Scores]:
    """Decode and score; the figures are the greedy ones, those of the samples stand below `SAMPLED`.

    Args:
        waves: where the waveforms of a model that speaks are written (`sampled/` below it for the samples); None writes
            none.
    """

    def once(sampling: SamplingConfig, folder: Path | None) -> Evaluation[Scores]:
        if system.listener is None:
            return evaluate(utterances, system.encoders, system.fleet, sampling)
        return evaluate_speech(utterances, system.encoders, system.fleet, system.listener, sampling, folder)

    greedy = once(evaluation_sampling(config), waves)
    if not config.evaluation.sampled:
        return greedy
    return with_samples(greedy, once(sample_once(config), None if waves is None else waves / SAMPLED))


def with_samples(greedy: Evaluation[Scores], sampled: Evaluation[Scores]) -> Evaluation[Scores]:
    """Both in one: the samples' scores and lines below `SAMPLED`."""
    lines = [{**line, SAMPLED: other} for line, other in zip(greedy.hypotheses, sampled.hypotheses, strict=True)]
    return Evaluation(dataclasses.replace(greedy.scores, sampled=sampled.scores), lines)
