"""A step's groups on their way to the ranks while others are still being sampled. Pure; runs on the controller."""

from __future__ import annotations

from collections.abc import Sequence

from learner.batches.batch import TrainGroup
from learner.batches.packing import balance_ranks


class Rounds:
    """Cuts groups, as they come, into rounds: one micro-batch on each rank, as full as the token budget allows.

    The cuts depend on the groups and their order alone, not on when they come.
    """

    def __init__(self, ranks: int, token_budget: int) -> None:
        """`token_budget`: positions of a micro-batch, as in `split_micro_batches`."""
        self._ranks, self._budget = ranks, token_budget
        self.open: list[TrainGroup] = []
        """The groups of the round that is not full yet."""
        self._whole = self._longest = 0

    def add(self, groups: Sequence[TrainGroup]) -> list[list[TrainGroup]]:
        """The rounds that are full now that these groups have come."""
        full = []
        for group in groups:
            length = group.packed_length
            if self.open and not self._fits(group, length):
                full.append(self.open)
                self.open, self._whole, self._longest = [], 0, 0
            self.open.append(group)
            self._whole += length
            self._longest = max(self._longest, length)
        return full

    def _fits(self, group: TrainGroup, length: int) -> bool:
        whole, longest = self._whole + length, max(self._longest, length)
        # Where each goes to the lightest rank, the fullest has at most this (Graham 1969). To deal them out anew for
        # each group that comes would take the controller seconds with many ranks.
        if whole + (self._ranks - 1) * longest <= self._ranks * self._budget:
            return True
        if whole > self._ranks * self._budget:
            return False
        shares = balance_ranks([*self.open, group], self._ranks)
        return all(sum(member.packed_length for member in share) <= self._budget for share in shares)
