"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    decay: str = "constant",
    floor: float = 0.0,
    decay_steps: int | None = None,
) -> float:
    """Learning rate of one optimiser step: linear warm-up, the peak, then decay.

    Warm-up takes the values peak · step / (warmup_steps + 1), so no update is wasted on a rate of 0 and the first
    step after it runs at the peak. `linear` and `cosine` fall over the last `decay_steps` steps and would reach
    floor · peak one step after the last; later steps stay at the floor.

    Args:
        step: 1 for the first.
        peak: highest rate.
        warmup_steps: steps before the peak.
        total_steps: steps of the whole run; unused by `constant`.
        decay: `constant`, `linear` or `cosine`.
        floor: fraction of the peak, in [0, 1], where the decay ends.
        decay_steps: length of the decay; None lets it begin right after the warm-up. With a number, a run that is
            prolonged shares its beginning with the shorter one (warm-up, stable, decay: 2404.06395).

    Raises:
        ValueError: a step below 1, a negative warm-up, a floor outside [0, 1], or an unknown decay.
    """
    if step < 1 or warmup_steps < 0:
        raise ValueError(f"step counts from 1 and warmup_steps from 0, not {step} and {warmup_steps}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is a fraction of the peak, in [0, 1], not {floor}")
    if decay not in ("constant", "linear", "cosine"):
        raise ValueError(f"unknown decay {decay!r}; known: constant, linear, cosine")
    if step <= warmup_steps:
        return peak * step / (warmup_steps + 1)
    if decay == "constant":
        return peak
    begin = warmup_steps if decay_steps is None else max(warmup_steps, total_steps - decay_steps)
    progress = min(1.0, max(0, step - 1 - begin) / max(1, total_steps - begin))
    remaining = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (floor + (1 - floor) * remaining)
