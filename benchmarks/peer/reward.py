"""A reward that costs nothing and differs from sample to sample; as in benchmarks/peer/trl_job.py."""

from __future__ import annotations

from rewards.registry import PartScore
from speech.records import Group


def nothing(group: Group) -> list[PartScore]:
    return [PartScore(value=sum(trajectory.token_ids) % 7 / 7) for trajectory in group.trajectories]
