"""How an error rate becomes a reward: the decreasing functions of PAPER §5, and what is logged of the edits."""

from __future__ import annotations

import math
from typing import Literal

from speech.edits import EditCounts

RateShape = Literal["one_minus", "tanh", "exp", "exp_power"]


def shaped(rate: float, shape: RateShape) -> float:
    """The reward of an error rate in [0, ∞): 1 without errors.

    `one_minus` 1 − c · `tanh` 1 − tanh(3c) (CosyVoice) · `exp` exp(−2.5c) (GLM-TTS) · `exp_power` exp(−12 c^1.5)
    (CosyVoice, later).
    """
    match shape:
        case "one_minus":
            return 1.0 - rate
        case "tanh":
            return 1.0 - math.tanh(3.0 * rate)
        case "exp":
            return math.exp(-2.5 * rate)
        case "exp_power":
            return math.exp(-12.0 * rate**1.5)


def edit_details(counts: EditCounts) -> dict[str, float]:
    """What a reward on errors logs; the rate is not capped."""
    return {
        "error_rate": counts.rate,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "reference_length": counts.reference_length,
    }
