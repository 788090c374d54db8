"""Counts prefix-cache hits where vLLM reports them: in the statistics of every scheduler step."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from rollout.engine.stats import EngineStats


class PrefixCacheCounter(StatLoggerBase):
    """Adds vLLM's per-step prefix-cache counts to an `EngineStats`."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._stats.prefix_queries += scheduler_stats.prefix_cache_stats.queries
            self._stats.prefix_hits += scheduler_stats.prefix_cache_stats.hits

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


@dataclass(frozen=True, slots=True)
class CounterFactory:
    """vLLM builds its stat loggers itself, from (configuration, engine index)."""

    stats: EngineStats

    def __call__(self, vllm_config: VllmConfig, engine_index: int = 0) -> PrefixCacheCounter:
        return PrefixCacheCounter(self.stats)
