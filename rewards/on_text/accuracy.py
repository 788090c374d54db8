"""R1, accuracy of the transcript (2509.18569; the other shapes are those of PAPER §5's table)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rewards.registry import PartScore, reward
from rewards.shapes import RateShape, edit_details, shaped
from speech.edits import EditCounts, character_edits, word_edits
from speech.records import Group

Shape = Literal[RateShape, "exact", "neg_edits"]


@reward("accuracy")
@dataclass(frozen=True)
class Accuracy:
    """A decreasing function of the error rate `c`, clipped at `cap`.

    `one_minus`, `tanh`, `exp`, `exp_power`: see `rewards.shapes.shaped` · `exact` 1 when there is no error, else 0 ·
    `neg_edits` minus the number of edits, at least −cap·N for N reference units (2509.01939).
    """

    shape: Shape = field(default="one_minus", metadata={"help": "function of the error rate"})
    cap: float = field(default=1.0, metadata={"help": "error rates above it count as it, so that no outlier dominates"})
    unit: Literal["auto", "character"] = field(
        default="auto", metadata={"help": "auto: words, or characters in languages without spaces"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap is a positive number, not {self.cap}")

    def __call__(self, group: Group) -> list[PartScore]:
        utterance = group.prompt.utterance
        count = word_edits if self.unit == "auto" else character_edits
        return [self._score(count(utterance.text, t.text, utterance.language)) for t in group.trajectories]

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
