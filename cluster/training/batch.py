"""What a step collected and did, as it passes from the loop to the recorder."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray

from cluster.runs.ledger import LedgerEntry
from learner.batches.batch import TrainGroup
from learner.batches.grouping import Selection
from rollout.actors import EncodedRef
from speech.records import Group


@dataclass(slots=True)
class TrainingBatch:
    """What a step collected.

    Attributes:
        groups: scored groups, in the order they were sampled (empty in SFT).
        selection: what to train on, what was rejected and why.
        audio: encoded audio by the index that training groups use.
        replay: supervised groups mixed in.
        bad: (prompt id, reason) for the prompts whose utterances cannot be used.
    """

    groups: list[Group] = field(default_factory=list)
    selection: Selection = field(default_factory=Selection)
    audio: list[EncodedRef] = field(default_factory=list)
    replay: list[TrainGroup] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def references(self) -> dict[int, ray.ObjectRef]:
        return {index: item.ref for index, item in enumerate(self.audio)}


@dataclass(slots=True)
class Step:
    """A finished step, as handed to the recorder."""

    number: int
    version: int
    batch: TrainingBatch
    metrics: dict[str, float]
    sample_gaps: dict[int, list[float]]

    @property
    def ledger(self) -> list[LedgerEntry]:
        selection = self.batch.selection
        return [
            *(LedgerEntry(prompt, "trained") for prompt in selection.trained),
            *(LedgerEntry(prompt, "rejected", reason) for prompt, reason in selection.rejected),
            *(LedgerEntry.bad_utterance(prompt, reason) for prompt, reason in self.batch.bad),
        ]
