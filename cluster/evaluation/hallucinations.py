"""Transcripts that cannot be of their audio: too much text for its length, or a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rewards.on_text.hallucination import Hallucination
from speech.edits import scored_language

CHARACTERS_PER_MINUTE = 1500
"""NeMo Gym's limit (25 a second; fast English speech has 15 to 20): a transcript with more is no transcript."""
_RULES = Hallucination()  # loops as the reward of this name finds them by default


@dataclass(frozen=True, slots=True)
class Hallucinations:
    """Those of one evaluation.

    Attributes:
        rules: which rule an utterance broke, by id: `rate` for too many characters a minute, else `loop`.
        seconds: of all audio.
    """

    rules: Mapping[str, str]
    seconds: float

    @property
    def per_hour(self) -> float:
        """How many utterances per hour of audio."""
        return len(self.rules) / (self.seconds / 3600)

    def to_json(self) -> dict[str, Any]:
        return {"per_hour": self.per_hour, "count": len(self.rules), "seconds": self.seconds, "ids": dict(self.rules)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(content["ids"], content["seconds"])


def hallucinations(lines: Sequence[Mapping[str, Any]]) -> Hallucinations | None:
    """Those among the hypotheses of an evaluation; None where the lengths of the audio are not known."""
    lengths = [float(line["seconds"]) for line in lines if line.get("seconds") is not None]
    total = sum(lengths)
    if len(lengths) < len(lines) or not total:
        return None
    found = {line["id"]: rule for line in lines if (rule := broken_rule(line)) is not None}
    return Hallucinations(found, total)


def broken_rule(line: Mapping[str, Any]) -> str | None:
    """`rate`, `loop`, or None; a transcript that equals its reference breaks neither."""
    reference, hypothesis = line["reference"], line["hypothesis"]
    if hypothesis == reference:
        return None
    if len(hypothesis.strip()) * 60 > CHARACTERS_PER_MINUTE * line["seconds"]:
        return "rate"
    repeats = _RULES.loop_repeats_truncated if line.get("finish_reason") == "length" else _RULES.loop_repeats
    code = scored_language(reference, hypothesis, line["language"])
    return "loop" if _RULES.loops(reference, hypothesis, code, repeats) else None
