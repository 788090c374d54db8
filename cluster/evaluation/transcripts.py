"""Scoring a manifest with greedy decoding: corpus WER/CER with edits and confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.actors.encoders import EncoderPool
from cluster.evaluation.hallucinations import hallucinations
from cluster.evaluation.result import Decoding, Evaluation
from cluster.evaluation.sampling import Stopwatch, sample_chunks
from cluster.evaluation.scores import TranscriptScores
from cluster.evaluation.written import written_rates
from cluster.fleet.fleet import EngineFleet
from rollout.config import SamplingConfig
from speech.edits import TranscriptPair, character_edits, corpus_rates, whisper_rate, word_edits
from speech.records import BadUtterance, Trajectory, Utterance
from speech.text import NORMALISER_VERSION


def evaluate(
    utterances: Sequence[Utterance], encoders: EncoderPool, fleet: EngineFleet, sampling: SamplingConfig
) -> Evaluation[TranscriptScores]:
    """Transcribe and score; nothing is learned from these utterances.

    Args:
        sampling: from `evaluation_sampling`.
    """
    lines: list[dict[str, Any]] = []
    bad: list[BadUtterance] = []
    watch = Stopwatch()
    for groups in watch.over(sample_chunks(utterances, encoders, fleet, sampling, bad)):
        for group in groups:
            utterance, trajectory = group.prompt.utterance, group.trajectories[0]
            lines.append(_line(utterance, trajectory, group.seconds))
    decoding = Decoding(watch.seconds, sum(line["seconds"] for line in lines))
    return Evaluation(transcript_scores(lines), lines, tuple(bad), decoding)


def transcript_scores(lines: Sequence[Mapping[str, Any]]) -> TranscriptScores:
    """The scores of an evaluation's hypotheses."""
    pairs = [TranscriptPair(line["reference"], line["hypothesis"], line["language"]) for line in lines]
    overall, languages = corpus_rates(pairs)
    return TranscriptScores(
        overall=overall,
        languages=languages,
        normaliser=NORMALISER_VERSION,
        wer_whisper=whisper_rate(pairs),
        written=written_rates(pairs),
        hallucinations=hallucinations(lines),
    )


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
