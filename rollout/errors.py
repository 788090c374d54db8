"""Errors of the rollout side, and the one place where a phase gets its time-out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from speech.errors import PhaseTimeoutError

Result = TypeVar("Result")
LOSS_CHECK_S = 1.0


class PublicationError(Exception):
    """New weights did not arrive, or could not be proved to have arrived. The engine is stale afterwards."""


class RefusedError(PublicationError):
    """New weights were refused before they touched the model; what was served before is served on."""


class UnreadableError(RefusedError):
    """New weights on the learner's device cannot be read from here, or not as they were sent: through the host they may
    be."""


class WeightsLostError(Exception):
    """New weights are nowhere any more, since the node that held them is gone. No engine is at fault, and none can have
    them: the learner must send them again."""


class StaleEngineError(Exception):
    """The engine holds weights that nobody vouches for, so it refuses to sample until a good publication."""


class EngineLostError(Exception):
    """The engine's processes are gone; only a new engine helps."""


def listed(faults: Sequence[str]) -> str:
    """Ten faults at most, and how many more there are."""
    return "; ".join(faults[:10]) + ("" if len(faults) <= 10 else f"; … and {len(faults) - 10} more")


async def within(
    seconds: float, phase: str, awaitable: Awaitable[Result], lost: Callable[[], bool] = lambda: False
) -> Result:
    """Await with a time-out that says what it was waiting for.

    Args:
        lost: asked now and then whether an answer can still come. An RPC that was under way when vLLM's engine process
            died is never answered.

    Raises:
        PhaseTimeoutError: after `seconds`; the awaitable is cancelled.
        EngineLostError: `lost` said so.
    """
    task = asyncio.ensure_future(awaitable)
    deadline = time.monotonic() + seconds
    try:
        while not task.done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise PhaseTimeoutError(phase, seconds)
            await asyncio.wait({task}, timeout=min(left, LOSS_CHECK_S))
            if not task.done() and lost():
                raise EngineLostError(f"the engine's processes were gone during {phase}")
        return task.result()
    finally:
        task.cancel()
