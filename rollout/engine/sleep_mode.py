"""Leaving a GPU that others use too, and coming back: vLLM's sleep mode, in the order that never holds too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

KEEP, DISCARD = 1, 2
"""vLLM's sleep levels. Both give up the key-value cache; 1 copies the weights to host memory, 2 gives them up too."""


class SleepMode:
    """Whether an engine is on its GPU. Every method may be called in every state; none does anything unless `shared`.

    Before a publication only the weights come back, and the key-value cache after it: while new weights are loaded both
    the old and the new ones need room. vLLM starts to schedule again by itself once all is back.
    """

    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self._asleep: set[str] = set()

    async def sleep(self, engine: AsyncLLM, keep_weights: bool) -> None:
        """Let running samples end, then leave."""
        if self.shared and not self._asleep:
            await engine.sleep(level=KEEP if keep_weights else DISCARD, mode="wait")
            self._asleep = {"weights", "kv_cache"}

    async def wake_weights(self, engine: AsyncLLM) -> None:
        """Give the weights their memory back; after a sleep that discarded them, without content."""
        if "weights" in self._asleep:
            await engine.wake_up(tags=["weights"])
            self._asleep.remove("weights")

    async def wake(self, engine: AsyncLLM) -> None:
        """Bring back whatever is still away."""
        if self._asleep:
            await engine.wake_up(tags=sorted(self._asleep, reverse=True))
            self._asleep = set()
