"""R1, accuracy of the transcript (2509.18569; the other shapes are those of PAPER §5's table)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from rewards.credit import token_errors, token_values
from rewards.registry import PartScore, reward
from rewards.shapes import RateShape, edit_details, shaped
from speech.edits import EditCounts, character_edits, word_edits
from speech.records import Group, Trajectory

Shape = Literal[RateShape, "exact", "neg_edits"]


@reward("accuracy")
@dataclass(frozen=True)
class Accuracy:
    """A decreasing function of the error rate `c`, clipped at `cap`.

    `one_minus`, `tanh`, `exp`, `exp_power`: see `rewards.shapes.shaped` · `exact` 1 when there is no error, else 0 ·
    `neg_edits` minus the number of edits, at least −cap·N for N reference units (2509.01939).

    With `word_credit` each token also has a value of its own (`rewards.credit`): an error costs the tokens of its word.
    """

    shape: Shape = field(default="one_minus", metadata={"help": "function of the error rate"})
    cap: float = field(default=1.0, metadata={"help": "error rates above it count as it, so that no outlier dominates"})
    unit: Literal["auto", "character"] = field(
        default="auto", metadata={"help": "auto: words, or characters in languages without spaces"}
    )

    word_credit: float = field(
        default=0.0, metadata={"help": "share of an error's cost that the tokens of its word bear alone; 0: all alike"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap is a positive number, not {self.cap}")
        if not 0 <= self.word_credit <= 1:
            raise ValueError(f"word_credit is a share in [0, 1], not {self.word_credit}")

    @property
    def needs_spans(self) -> bool:
        """Whether trajectories must say which characters their tokens wrote."""
        return self.word_credit > 0

    def __call__(self, group: Group) -> list[PartScore]:
        utterance = group.prompt.utterance
        count = word_edits if self.unit == "auto" else character_edits
        scores = [self._score(count(utterance.text, t.text, utterance.language)) for t in group.trajectories]
        if not self.needs_spans:
            return scores
        return [self._credited(group, t, score) for t, score in zip(group.trajectories, scores, strict=True)]

    def _credited(self, group: Group, trajectory: Trajectory, score: PartScore) -> PartScore:
        """The score with a value per token; without where it cannot be said whose errors they are, which is logged."""
        utterance, value = group.prompt.utterance, score.value
        assert value is not None
        errors = token_errors(utterance.text, trajectory, utterance.language, self.unit == "character")
        tokens = token_values(value, self._shaped(EditCounts()), self.word_credit, errors)
        return replace(score, tokens=tokens, details={**score.details, "word_credit": float(bool(tokens))})

    def _score(self, counts: EditCounts) -> PartScore:
        return PartScore(value=self._shaped(counts), details=edit_details(counts))

    def _shaped(self, counts: EditCounts) -> float:
        rate = min(counts.rate, self.cap)
        match self.shape:
            case "exact":
                return float(counts.errors == 0)
            case "neg_edits":
                return -rate * max(counts.reference_length, 1)
            case shape:
                return shaped(rate, shape)
