"""What an engine tells the controller about itself. Imports no vLLM, which the controller does without."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Totals since the engine started; take differences for a step.

    Attributes:
        prompts, trajectories, tokens: groups asked for, samples drawn, tokens sampled (stop tokens included).
        generate_seconds: wall time inside `generate`, overlapping calls each counted.
        prefix_queries, prefix_hits: prompt positions looked up in the prefix cache, and found there.
        updates, update_seconds: verified publications and their wall time.
        wake_seconds: wall time of coming back onto a shared GPU, which is mostly part of a publication.
    """

    prompts: int = 0
    trajectories: int = 0
    tokens: int = 0
    generate_seconds: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    updates: int = 0
    update_seconds: float = 0.0
    wake_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Answer of a living engine.

    Attributes:
        version: policy version of its weights, None before the first publication of an engine that needs one.
        stale: why it refuses to sample, or None.
        unfinished: samples in flight.
    """

    version: int | None
    stale: str | None
    unfinished: int
