"""Prompts for a step: those whose utterances can be used, in the data's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cluster.data.prompts import PromptSource
from cluster.data.rejections import Rejections
from speech.records import BadUtterance, Prompt

Encoded = TypeVar("Encoded")


@dataclass(slots=True, eq=False)
class PromptBatch(Generic[Encoded]):
    """Prompts that were dealt out together.

    Attributes:
        size: how many there are to be.
        prompts: that can be used, as far as is known.
        rejected: the others, with the reason.
        audio: what became of each prompt's audio, in order; empty before.
    """

    size: int
    prompts: list[Prompt] = field(default_factory=list)
    rejected: list[tuple[Prompt, str]] = field(default_factory=list)
    audio: list[Encoded] = field(default_factory=list)


class Intake(Generic[Encoded]):
    """Takes prompts from a source, encodes them, and takes others in the place of those that cannot be used.

    A batch is the next `size` usable prompts of the source's stream. So a run over data with bad utterances has the
    batches of a run over the same data without them, whoever is faster: batches are filled one after another.
    """

    def __init__(
        self,
        source: PromptSource,
        encode: Callable[[Sequence[Prompt]], Sequence[Encoded | BadUtterance]],
        refusal: Callable[[Prompt, Encoded], str | None],
        rejections: Rejections,
    ) -> None:
        """`refusal` says why an encoded prompt cannot be used, or None."""
        self._source, self._encode, self._refusal, self._rejections = source, encode, refusal, rejections

    def fill(self, batch: PromptBatch[Encoded]) -> None:
        """Complete a batch, which may hold prompts already, and encode it.

        Raises:
            InputError: an utterance cannot be used, and `data.on_bad` is `error`.
            UserError: too many cannot.
        """
        encoded: dict[str, Encoded] = {}
        while True:
            batch.prompts += self._source.take(batch.size - len(batch.prompts))
            fresh = [prompt for prompt in batch.prompts if prompt.id not in encoded]
            if not fresh:
                break
            bad = {p.id: found for p in fresh if (found := self._rejections.known(p.utterance.id)) is not None}
            asked = [prompt for prompt in fresh if prompt.id not in bad]
            for prompt, answer in zip(asked, self._encode(asked) if asked else [], strict=True):
                found = answer if isinstance(answer, BadUtterance) else self._refused(prompt, answer)
                if found is not None:
                    bad[prompt.id] = found
                elif not isinstance(answer, BadUtterance):
                    encoded[prompt.id] = answer
            self._rejections.judge(len(fresh) - len(bad), list(bad.values()))
            batch.rejected += [(prompt, bad[prompt.id].reason) for prompt in fresh if prompt.id in bad]
            batch.prompts = [prompt for prompt in batch.prompts if prompt.id not in bad]
        batch.audio = [encoded[prompt.id] for prompt in batch.prompts]

    def _refused(self, prompt: Prompt, encoded: Encoded) -> BadUtterance | None:
        reason = self._refusal(prompt, encoded)
        return None if reason is None else BadUtterance(prompt.utterance.id, reason)
