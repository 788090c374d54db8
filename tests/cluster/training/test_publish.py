"""Whose time a publication takes, with a *simulated* learner, encoders and fleet on a clock that moves when told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cluster.config.schema import PublishConfig
from cluster.monitoring.phases import Phase
from cluster.training.publish import publish
from rollout.config import EngineConfig
from speech.errors import PhaseTimeoutError
from speech.runtime.weights import Probe

BUDGET_S = 300.0


class SimulatedSystem:
    """Learner, encoders and fleet in one object: gathering takes `gather_s`, and the fleet notes what it is given."""

    def __init__(self, gather_s: float) -> None:
        self.gather_s, self.now = gather_s, 1000.0
        self.config = EngineConfig()
        self.update_s: float | None = None

    def publish(self, *args: Any) -> Any:
        return self.gather(*args) if len(args) == 2 else self.load(*args)

    def gather(self, dtype: str, bucket_bytes: int) -> list[Any]:
        self.now += self.gather_s
        return []

    def load(self, version: int, buckets: Sequence[Any], probe: Probe, timeout: float, in_flight: bool) -> float:
        self.update_s = timeout
        return 1e-6

    def frontend_state_dicts(self) -> dict[str, Any]:
        return {}

    def update(self, states: Any, timeout: float) -> None:
        self.encoders_s = timeout

    def probe_logprobs(self, token_ids: list[int]) -> list[float]:
        return [-1.0] * (len(token_ids) - 1)


def published(system: Any) -> float:
    clock: Callable[[], float] = lambda: system.now  # noqa: E731
    return publish(1, system, system, system, PublishConfig(), 10, Phase("publish", BUDGET_S, clock))


def test_a_slow_gathering_takes_nothing_from_the_engines() -> None:
    system = SimulatedSystem(gather_s=0.99 * BUDGET_S)
    assert published(system) == 1e-6
    assert system.encoders_s == pytest.approx(0.01 * BUDGET_S)
    assert system.update_s == BUDGET_S


def test_a_gathering_beyond_the_budget_ends_the_phase() -> None:
    system = SimulatedSystem(gather_s=1.01 * BUDGET_S)
    with pytest.raises(PhaseTimeoutError, match="`publish` did not end within 300 s"):
        published(system)
    assert system.update_s is None
