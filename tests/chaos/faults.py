"""The kinds of faults, and plans of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

ONE_NODE = {
    "kill_engine": ("generate", "publish", "learn"),
    "kill_engine_core": ("generate", "publish", "learn"),
    "kill_all_engines": ("generate",),
    "hang_engine": ("generate", "publish"),
    "corrupt_publication": ("publish",),
    "kill_encoder": ("encode", "generate"),
    "kill_reward": ("generate", "reward"),
    "hang_reward": ("generate", "reward"),
    "kill_rank": ("learn", "generate", "publish"),
    "kill_driver": ("generate", "learn", "publish", "checkpoint"),
    "full_disk": ("checkpoint", "learn"),
}
"""The kinds that a run on one machine can have, and the phases in which they strike."""
SEVERAL_NODES = {"kill_raylet": ("generate", "learn", "publish")}
"""Those that need a cluster with a node to spare."""
OWN_DATA = {"remove_audio": ("learn",)}
"""Those that need recordings of their own, in a folder `vanishing` beside the run's configuration."""
PHASES = ONE_NODE | SEVERAL_NODES | OWN_DATA
RERUN = {"kill_driver": -9, "full_disk": 2}
"""Kinds that end the command, with its exit code (negative: a signal). The same command is then run again."""


@dataclass(frozen=True)
class Fault:
    """`delay`: seconds after the phase has begun, in this step or in the first one after it that has the phase."""

    kind: str
    step: int
    phase: str
    delay: float = 0.0


def random_plan(
    count: int, steps: int, seed: int, kinds: Sequence[str] = tuple(ONE_NODE), one_of: str | None = None
) -> list[Fault]:
    """Faults at random places in steps 2 to `steps`, one per step at most so that each is recovered from by itself.

    Args:
        kinds: to draw from.
        one_of: kind of one fault at least.
    """
    draw = random.Random(seed)
    chosen = sorted(draw.sample(range(2, steps + 1), min(count, steps - 1)))
    drawn = [draw.choice(sorted(kinds)) for _ in chosen]
    if one_of is not None:
        drawn[draw.randrange(len(drawn))] = one_of
    return [
        Fault(kind, step, draw.choice(PHASES[kind]), round(draw.uniform(0, 0.3), 2))
        for kind, step in zip(drawn, chosen, strict=True)
    ]
