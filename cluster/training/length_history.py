"""The history behind the duration reward. Pure state: the training loop keeps it and puts it into its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speech.errors import UserError
from speech.records import Group


class LengthHistory:
    """Lengths of samples that ended naturally, by utterance.

    It belongs to the controller and not to reward actors: those come and go, and which of them scores a group depends
    on time. Groups are added in the order in which they are trained on, after they were scored, so that two runs, or
    a run and its resumption, have the same history.

    Args:
        limit: lengths kept of an utterance. The *first* ones stay: a history that moved with the policy would let it
            grow slower step by step and never notice.
    """

    def __init__(self, limit: int = 64) -> None:
        if limit < 1:
            raise ValueError(f"limit is at least 1, not {limit}")
        self._limit = limit
        self._lengths: dict[str, tuple[int, ...]] = {}

    def lengths(self, utterance_id: str) -> tuple[int, ...]:
        """For `Group.past_lengths`: numbers of speech tokens, oldest first; empty at the first visit."""
        return self._lengths.get(utterance_id, ())

    def snapshot(self) -> dict[str, tuple[int, ...]]:
        """The lengths of now, by utterance."""
        return dict(self._lengths)

    def add(self, group: Group) -> None:
        """Remember a group's samples; those without tokens or without a natural end say nothing about duration."""
        new = [len(t.speech_tokens) for t in group.trajectories if t.finish_reason == "stop" and t.speech_tokens]
        if new:
            known = self.lengths(group.prompt.utterance.id)
            self._lengths[group.prompt.utterance.id] = (*known, *new)[: self._limit]

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": {name: list(lengths) for name, lengths in self._lengths.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises:
        UserError: the state is not one of this class.
        """
        try:
            self._lengths = {str(name): tuple(int(n) for n in lengths) for name, lengths in state["lengths"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the checkpoint's history of lengths cannot be read: {error}") from error
