"""Where actors run: with `placement: colocated`, engine i, learner rank i and encoders share GPU i and take turns."""

from __future__ import annotations

import logging
from typing import Any

from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import RunConfig

logger = logging.getLogger(__name__)

EXPERIMENTAL = (
    "placement: `colocated` is experimental: no engine of ours has slept and woken on a GPU yet; "
    "`disaggregated` gives every component its own"
)
ENGINE_SHARE, RANK_SHARE, ENCODER_SHARE = 0.5, 0.4, 0.1
"""Of one GPU, in Ray's books. They only say who may be there: whoever's turn it is has the GPU to itself."""


def shares_gpus(config: RunConfig) -> bool:
    """Whether components share GPUs, so that each must leave when its turn is over."""
    return config.placement == "colocated" and config.engines.gpus_per_engine > 0


class Placement:
    """Ray options for each actor of a run; empty where every component has devices of its own."""

    def __init__(self, config: RunConfig) -> None:
        self._bundles: list[dict[str, Any]] = []
        self._encoder_share = 0.0
        if shares_gpus(config):
            logger.warning(EXPERIMENTAL)
            count = config.engines.count
            cpus = 2 + -(-config.encoder.max_count // count) * config.encoder.threads
            group = placement_group([{"GPU": 1, "CPU": cpus}] * count)
            self._bundles = [
                {
                    "scheduling_strategy": PlacementGroupSchedulingStrategy(
                        placement_group=group, placement_group_bundle_index=i
                    )
                }
                for i in range(count)
            ]
            self._encoder_share = config.encoder.gpus and ENCODER_SHARE / -(-config.encoder.max_count // count)

    def engine(self, index: int) -> dict[str, Any]:
        return self._on(index, ENGINE_SHARE)

    def rank(self, index: int) -> dict[str, Any]:
        return self._on(index, RANK_SHARE)

    def encoder(self, index: int) -> dict[str, Any]:
        return self._on(index, self._encoder_share)

    def _on(self, index: int, share: float) -> dict[str, Any]:
        if not self._bundles:
            return {}
        return self._bundles[index % len(self._bundles)] | {"num_gpus": share}
