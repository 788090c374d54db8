"""Scoring a manifest with greedy decoding: corpus WER/CER with edits and confidence intervals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import jsonl
from cluster.config import RunConfig
from cluster.data import derived_seed
from cluster.fleet import EngineFleet
from cluster.prompt_pools import PromptPool
from rewards.edits import TranscriptPair, character_edits, corpus_summary, word_edits
from rollout.config import SamplingConfig
from speech.errors import UserError
from speech.records import Prompt, Trajectory, Utterance
from speech.text import NORMALISER_VERSION

CHUNK = 256
"""Utterances encoded and decoded at a time: bounds what stands in the object store, and gives the display a pulse."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A scored manifest.

    Attributes:
        summary: `wer`, `cer`, edit counts and intervals, overall and in `languages`.
        hypotheses: one per utterance, in its order.
    """

    summary: dict[str, Any]
    hypotheses: list[dict[str, Any]]

    def by_id(self) -> dict[str, str]:
        return {line["id"]: line["hypothesis"] for line in self.hypotheses}


def evaluate(
    utterances: Sequence[Utterance], encoders: PromptPool, fleet: EngineFleet, sampling: SamplingConfig
) -> Evaluation:
    """Transcribe and score; nothing is learned from these utterances.

    Args:
        sampling: from `evaluation_sampling`.
    """
    lines: list[dict[str, Any]] = []
    timeout = fleet.config.generate_timeout_s
    for start in range(0, len(utterances), CHUNK):
        part = utterances[start : start + CHUNK]
        prompts = [
            Prompt(id=f"evaluation/{u.id}", utterance=u, epoch=0, position=start + i, seed=derived_seed("eval", u.id))
            for i, u in enumerate(part)
        ]
        audio = encoders.encode(part, timeout)
        groups = fleet.generate(prompts, audio, sampling, None)
        lines += [_line(group.prompt.utterance, group.trajectories[0], group.seconds) for group in groups]
    pairs = [TranscriptPair(line["reference"], line["hypothesis"], line["language"]) for line in lines]
    return Evaluation({**corpus_summary(pairs), "normaliser": NORMALISER_VERSION}, lines)


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


def load_evaluation(path: Path, conditions: Mapping[str, Any]) -> Evaluation | None:
    """An evaluation written by `store_evaluation` under the same conditions, or None when there is none."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        same = content["conditions"] == conditions
        return Evaluation(content["summary"], content["hypotheses"]) if same else None
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it to evaluate again") from error


def store_evaluation(path: Path, evaluation: Evaluation, conditions: Mapping[str, Any]) -> None:
    """Write an evaluation whole, so that a resumed run need not repeat it."""
    content = {
        "conditions": dict(conditions),
        "summary": evaluation.summary,
        "hypotheses": evaluation.hypotheses,
    }
    jsonl.replace(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
