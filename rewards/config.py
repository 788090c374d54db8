"""Configuration of the rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RewardItem:
    """One reward of the composition."""

    name: str = field(metadata={"help": "registered reward, or module:function (module:Class) of your own"})
    weight: float = field(default=1.0, metadata={"help": "factor in the weighted sum; 0 only logs the part"})
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the reward, see docs/rewards.md; unknown ones are errors"}
    )


def _default_items() -> list[RewardItem]:
    return [RewardItem("accuracy"), RewardItem("hallucination", weight=0.5)]


@dataclass
class RewardConfig:
    """Which rewards are computed, how they are combined, and who computes them."""

    items: list[RewardItem] = field(
        default_factory=_default_items, metadata={"help": "rewards of the weighted sum, each at most once"}
    )
    normalise_parts: bool = field(
        default=False,
        metadata={"help": "z-normalise each part over its group before weighting, so that no part's scale dominates"},
    )
    workers: int = field(default=1, metadata={"help": "reward actors", "min": 1})
    timeout_s: float = field(
        default=60.0,
        metadata={"help": "seconds a reward actor may take for one call; then it is killed and replaced", "min": 0.1},
    )
    retries: int = field(
        default=1,
        metadata={"help": "attempts after a time-out or a lost actor, before the samples become invalid", "min": 0},
    )
