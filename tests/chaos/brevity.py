"""A reward that changes its mind, for a run whose rollouts are to become shorter by themselves."""

from __future__ import annotations

from pathlib import Path

from rewards.registry import PartScore
from speech.records import Group


def brevity(group: Group, *, marker: str) -> list[PartScore]:
    """All samples are worth the same until the file `marker` exists, and nothing is learned; from then on the shorter
    one is worth more."""
    wanted = Path(marker).exists()
    return [PartScore(value=-len(t.token_ids) / 100 if wanted else 0.0) for t in group.trajectories]
