"""No-stop penalty (PAPER §6): a sample that never ended."""

from __future__ import annotations

from rewards.registry import PartScore, reward
from speech.records import Group


@reward("no_stop")
def no_stop(group: Group) -> list[PartScore]:
    """−1 when the sample ran into its token budget without a stop token, else 0."""
    return [PartScore(value=-float(trajectory.finish_reason == "length")) for trajectory in group.trajectories]
