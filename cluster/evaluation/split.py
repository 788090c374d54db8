"""Evaluating a manifest with a running system: greedily, and on request also with one sample per utterance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.evaluation.result import Evaluation
from cluster.evaluation.speech import evaluate_speech
from cluster.evaluation.transcripts import evaluate, evaluation_sampling
from rollout.config import SamplingConfig
from speech.records import Utterance

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from cluster.system import System

SAMPLED = "sampled"
"""Under this key a summary, and each line of the hypotheses, holds what one sample per utterance gave."""


def evaluate_split(
    config: RunConfig, system: System, utterances: Sequence[Utterance], waves: Path | None = None
) -> Evaluation:
    """Decode and score; the figures are the greedy ones, those of the samples stand below `SAMPLED`.

    Args:
        waves: where the waveforms of a model that speaks are written (`sampled/` below it for the samples); None writes
            none.
    """

    def once(sampling: SamplingConfig, folder: Path | None) -> Evaluation:
        if system.listener is None:
            return evaluate(utterances, system.encoders, system.fleet, sampling)
        return evaluate_speech(utterances, system.encoders, system.fleet, system.listener, sampling, folder)

    greedy = once(evaluation_sampling(config), waves)
    if not config.evaluation.sampled:
        return greedy
    return with_samples(greedy, once(sample_once(config), None if waves is None else waves / SAMPLED))


def sample_once(config: RunConfig) -> SamplingConfig:
    """One sample per utterance at the training's temperature, with the evaluation's budget of tokens.

    Its seed derives from the utterance alone: evaluations before and after training draw with the same numbers.
    """
    return dataclasses.replace(evaluation_sampling(config), temperature=config.sampling.temperature)


def with_samples(greedy: Evaluation, sampled: Evaluation) -> Evaluation:
    """Both in one: the samples' summary and lines below `SAMPLED`."""
    lines = [{**line, SAMPLED: other} for line, other in zip(greedy.hypotheses, sampled.hypotheses, strict=True)]
    return Evaluation({**greedy.summary, SAMPLED: sampled.summary}, lines)


def flat_scores(summary: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The named scores that are known, those of the samples as `sampled/<name>`."""
    found = {name: summary[name] for name in names if summary.get(name) is not None}
    below = summary.get(SAMPLED, {})
    return found | {f"{SAMPLED}/{name}": below[name] for name in names if below.get(name) is not None}
