"""Scoring a manifest with greedy decoding: corpus WER/CER with edits and confidence intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cluster.actors.encoders import EncoderPool
from cluster.config import RunConfig
from cluster.data.prompts import derived_seed
from cluster.evaluation.result import CHUNK, Evaluation
from cluster.evaluation.scores import TranscriptScores
from cluster.fleet.fleet import EngineFleet
from rollout.config import SamplingConfig
from speech.edits import TranscriptPair, character_edits, corpus_rates, word_edits
from speech.records import Prompt, Trajectory, Utterance
from speech.text import NORMALISER_VERSION


def evaluate(
    utterances: Sequence[Utterance], encoders: EncoderPool, fleet: EngineFleet, sampling: SamplingConfig
) -> Evaluation[TranscriptScores]:
    """Transcribe and score; nothing is learned from these utterances.

    Args:
        sampling: from `evaluation_sampling`.
    """
    lines: list[dict[str, Any]] = []
    pairs: list[TranscriptPair] = []
    timeout = fleet.config.generate_timeout_s
    for start in range(0, len(utterances), CHUNK):
        part = utterances[start : start + CHUNK]
        prompts = [
            Prompt(id=f"evaluation/{u.id}", utterance=u, epoch=0, position=start + i, seed=derived_seed("eval", u.id))
            for i, u in enumerate(part)
        ]
        audio = encoders.encode(part, timeout)
        groups = fleet.generate(prompts, audio, sampling, None)
        for group in groups:
            utterance, trajectory = group.prompt.utterance, group.trajectories[0]
            lines.append(_line(utterance, trajectory, group.seconds))
            pairs.append(TranscriptPair(utterance.text, trajectory.text, utterance.language))
    overall, languages = corpus_rates(pairs)
    return Evaluation(TranscriptScores(overall=overall, languages=languages, normaliser=NORMALISER_VERSION), lines)


def evaluation_sampling(config: RunConfig) -> SamplingConfig:
    """Greedy decoding with the evaluation's own budget of tokens."""
    greedy = config.sampling.greedy()
    budget = config.evaluation.max_new_tokens
    return greedy if budget is None else dataclasses.replace(greedy, max_new_tokens=budget)


def _line(utterance: Utterance, trajectory: Trajectory, seconds: float) -> dict[str, Any]:
    words = word_edits(utterance.text, trajectory.text, utterance.language)
    characters = character_edits(utterance.text, trajectory.text, utterance.language)
    return {
        "id": utterance.id,
        "audio": utterance.audio,
        "seconds": seconds,
        "language": utterance.language,
        "reference": utterance.text,
        "hypothesis": trajectory.text,
        "wer": words.rate,
        "cer": characters.rate,
        "sub": words.substitutions,
        "del": words.deletions,
        "ins": words.insertions,
        "finish_reason": trajectory.finish_reason,
    }
