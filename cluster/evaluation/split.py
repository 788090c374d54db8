"""Evaluating a manifest with a running system: greedily, and on request also with one sample per utterance."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.evaluation.result import Evaluation
from cluster.evaluation.sampling import bad_input, evaluation_sampling, sample_once
from cluster.evaluation.scores import SAMPLED, Scores
from cluster.evaluation.speech import evaluate_speech
from cluster.evaluation.transcripts import evaluate
from rollout.config import SamplingConfig
from speech.records import Utterance

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from cluster.system import System

logger = logging.getLogger(__name__)


def evaluate_split(
    config: RunConfig, system: System, utterances: Sequence[Utterance], waves: Path | None = None
) -> Evaluation[Scores]:
    """Decode and score; the figures are the greedy ones, those of the samples stand below `SAMPLED`.

    Raises:
        InputError: an utterance cannot be evaluated, and `data.on_bad` is `error`; or none can.

    Args:
        waves: where the waveforms of a model that speaks are written (`sampled/` below it for the samples); None writes
            none.
    """

    def once(sampling: SamplingConfig, folder: Path | None) -> Evaluation[Scores]:
        if system.listener is None:
            return evaluate(utterances, system.encoders, system.fleet, sampling)
        return evaluate_speech(utterances, system.encoders, system.fleet, system.listener, sampling, folder)

    result = once(evaluation_sampling(config), waves)
    if config.evaluation.sampled:
        result = with_samples(result, once(sample_once(config), None if waves is None else waves / SAMPLED))
    if result.bad and config.data.on_bad == "error":
        raise bad_input(result.bad)
    for item in result.bad:
        logger.warning("utterance %s is not evaluated: %s", item.id, item.reason)
    return result


def with_samples(greedy: Evaluation[Scores], sampled: Evaluation[Scores]) -> Evaluation[Scores]:
    """Both in one: the samples' scores and lines below `SAMPLED`."""
    others = {line["id"]: line for line in sampled.hypotheses}
    lines = [{**line, SAMPLED: others.get(line["id"])} for line in greedy.hypotheses]
    bad = {item.id: item for item in (*greedy.bad, *sampled.bad)}
    scores = dataclasses.replace(greedy.scores, sampled=sampled.scores)
    return Evaluation(scores, lines, tuple(bad.values()), greedy.decoding)
