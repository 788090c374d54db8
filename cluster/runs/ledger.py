"""`ledger.jsonl`: the account of what became of every prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.runs import durable

Outcome = Literal["trained", "rejected"]

BAD_UTTERANCE = "bad utterance: "
"""Begins the reason of a prompt that was rejected because its utterance cannot be used."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What became of a prompt.

    Attributes:
        prompt_id: `"<epoch>/<utterance id>"`.
        outcome: `trained`, or `rejected` with a reason.
        reason: why it was rejected; None otherwise.
    """

    prompt_id: str
    outcome: Outcome
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.outcome == "rejected") != (self.reason is not None):
            raise ValueError(f"{self.prompt_id}: a reason belongs to a rejected prompt, and to no other")

    @classmethod
    def bad_utterance(cls, prompt_id: str, reason: str) -> LedgerEntry:
        """A prompt that was rejected because its utterance cannot be used, and why it cannot."""
        return cls(prompt_id, "rejected", BAD_UTTERANCE + reason)


@dataclass(frozen=True, slots=True)
class Audit:
    """The account of a run. Prompts are named by id, in sorted order.

    Attributes:
        trained, rejected: entries.
        reasons: entries per reason of rejection; bad utterances are one.
        complete_epochs: epochs that were checked for missing prompts, counted from 0.
        duplicates: prompts with more than one entry.
        missing: prompts of complete epochs without an entry.
        unknown: prompts of utterances that are not in the data.
    """

    trained: int
    rejected: int
    reasons: dict[str, int]
    complete_epochs: int
    duplicates: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether every prompt of every complete epoch is there exactly once."""
        return not (self.duplicates or self.missing or self.unknown)


class Ledger:
    """`ledger.jsonl`: one line per finished prompt, so that an epoch can be audited after any number of crashes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, step: int, entries: Iterable[LedgerEntry]) -> None:
        """Record the prompts that a step finished; on the disk when this returns.

        Raises:
            UserError: the disk is full or the folder is gone.
        """
        durable.append(
            self._path,
            ({"step": step, "prompt": e.prompt_id, "outcome": e.outcome, "reason": e.reason} for e in entries),
        )

    def rewind(self, step: int) -> None:
        """Forget what happened after `step`, because training resumes from there."""
        durable.rewind(self._path, step)

    def bad_utterances(self) -> list[tuple[str, str]]:
        """(prompt id, what is wrong) of each prompt that was rejected for its utterance, in order."""
        reasons = ((str(line["prompt"]), line["reason"] or "") for line in durable.read(self._path))
        found = [(prompt, why) for prompt, why in reasons if why.startswith(BAD_UTTERANCE)]
        return [(prompt, why.removeprefix(BAD_UTTERANCE)) for prompt, why in found]

    def audit(
        self, utterance_ids: Iterable[str], complete_epochs: int | None = None, in_flight: Iterable[str] = ()
    ) -> Audit:
        """Hold the ledger against the data.

        Args:
            utterance_ids: the utterances of one epoch.
            complete_epochs: how many epochs must be complete (`PromptSource.complete_epochs`); None takes those before
                the last epoch in the ledger.
            in_flight: prompts that the checkpoint holds, to be trained by the resumed run; they are not missing.
        """
        lines = durable.read(self._path)
        counts = Counter(str(line["prompt"]) for line in lines)
        known = set(utterance_ids)
        if complete_epochs is None:
            complete_epochs = max((_epoch_of(prompt) for prompt in counts), default=0)
        waiting = set(in_flight)
        expected = (f"{epoch}/{utterance}" for epoch in range(complete_epochs) for utterance in known)
        return Audit(
            trained=sum(line["outcome"] == "trained" for line in lines),
            rejected=sum(line["outcome"] == "rejected" for line in lines),
            reasons=dict(sorted(Counter(_kind(line["reason"]) for line in lines if line["reason"]).items())),
            complete_epochs=complete_epochs,
            duplicates=tuple(sorted(prompt for prompt, count in counts.items() if count > 1)),
            missing=tuple(sorted(prompt for prompt in expected if prompt not in counts and prompt not in waiting)),
            unknown=tuple(sorted(prompt for prompt in counts if prompt.partition("/")[2] not in known)),
        )


def _kind(reason: str) -> str:
    """What is wrong with an utterance names a file, and would be a kind of its own each time."""
    return BAD_UTTERANCE.removesuffix(": ") if reason.startswith(BAD_UTTERANCE) else reason


def _epoch_of(prompt_id: str) -> int:
    return int(prompt_id.partition("/")[0])
