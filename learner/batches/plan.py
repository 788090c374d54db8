"""How a step's groups are divided into optimiser updates and ranks. Pure; runs on the controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner.batches.batch import BatchTotals, TrainGroup
from learner.batches.packing import balance_ranks, totals


@dataclass(frozen=True, slots=True)
class RankShare:
    """One optimiser update as one rank sees it.

    Attributes:
        groups, replay: this rank's part; possibly empty.
        totals, replay_totals: counts over *all* ranks, which normalise the losses.
        dummy: a group that a rank with fewer micro-batches computes with weight 0, because FSDP2's collectives
            need every rank to run equally often.
    """

    groups: tuple[TrainGroup, ...]
    totals: BatchTotals
    replay: tuple[TrainGroup, ...]
    replay_totals: BatchTotals
    dummy: TrainGroup


def plan_updates(
    groups: Sequence[TrainGroup],
    replay: Sequence[TrainGroup],
    updates: int,
    ranks: int,
    sample_filter: str | None = None,
    labels_per_token: int = 1,
) -> list[list[RankShare]]:
    """Divide a step into `updates` optimiser updates of near-equal group counts; result[rank][update].

    Fewer updates result when there are fewer groups; none at all when there is nothing to train on.

    Args:
        sample_filter, labels_per_token: DiffRO's, for the counts that normalise its loss; see `totals`.
    """
    everything = [*groups, *replay]
    if not everything:
        return [[] for _ in range(ranks)]
    updates = max(1, min(updates, len(groups))) if groups else 1
    dummy = min(everything, key=lambda group: group.packed_length)
    shares: list[list[RankShare]] = [[] for _ in range(ranks)]
    for update in range(updates):
        part, replay_part = list(groups[update::updates]), list(replay[update::updates])
        by_rank, replay_by_rank = (balance_ranks(g, ranks) for g in (part, replay_part))
        for rank in range(ranks):
            shares[rank].append(
                RankShare(
                    tuple(by_rank[rank]),
                    totals(part, sample_filter, labels_per_token),
                    tuple(replay_by_rank[rank]),
                    totals(replay_part),
                    dummy,
                )
            )
    return shares


def audio_of(shares: Sequence[RankShare]) -> list[int]:
    """Indices of the encoded audio that these shares refer to, so that a rank fetches nothing else; none in TTS."""
    groups = (group for share in shares for group in (*share.groups, *share.replay, share.dummy))
    return sorted({group.audio for group in groups if group.layout.audio_length})
