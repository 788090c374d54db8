"""The order in which an engine leaves a GPU and comes back. vLLM's side is *simulated*: its sleep mode needs a GPU."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rollout.config import EngineConfig
from rollout.engine.engine import RolloutEngine
from rollout.engine.sleep_mode import SleepMode
from rollout.errors import PublicationError, StaleEngineError
from speech.runtime.weights import Probe


class SimulatedEngine:
    """Sleep and wake-up as `vllm.v1.engine.core` and `v1.executor.abstract` (0.32) have them: a tag that is not asleep
    makes a wake-up do nothing, and scheduling begins by itself once nothing is asleep any more."""

    def __init__(self) -> None:
        self.asleep: set[str] = set()
        self.paused = False
        self.calls: list[tuple[Any, ...]] = []

    async def sleep(self, level: int, mode: str) -> None:
        self.calls.append(("sleep", level, mode))
        self.asleep = {"weights", "kv_cache"}
        self.paused = True

    async def wake_up(self, tags: list[str]) -> bool:
        self.calls.append(("wake_up", tuple(tags)))
        assert set(tags) <= self.asleep, "vLLM would warn and wake nothing"
        self.asleep -= set(tags)
        self.paused = bool(self.asleep)
        return not self.asleep


@pytest.fixture
def engine() -> Any:
    return SimulatedEngine()


def test_around_a_publication_weights_come_back_before_the_cache(engine: Any) -> None:
    turns = SleepMode(shared=True)

    async def step() -> None:
        await turns.sleep(engine, keep_weights=False)
        await turns.wake_weights(engine)
        assert engine.asleep == {"kv_cache"} and engine.paused
        await turns.wake(engine)

    asyncio.run(step())
    assert engine.calls == [("sleep", 2, "wait"), ("wake_up", ("weights",)), ("wake_up", ("kv_cache",))]
    assert not engine.paused


def test_weights_that_were_kept_need_no_publication(engine: Any) -> None:
    turns = SleepMode(shared=True)

    async def checkpoint() -> None:
        await turns.sleep(engine, keep_weights=True)
        await turns.wake(engine)

    asyncio.run(checkpoint())
    assert engine.calls == [("sleep", 1, "wait"), ("wake_up", ("weights", "kv_cache"))]


def test_a_publication_that_fails_half_way_wakes_what_is_left(engine: Any) -> None:
    turns = SleepMode(shared=True)

    async def failure() -> None:
        await turns.sleep(engine, keep_weights=False)
        await turns.sleep(engine, keep_weights=False)  # twice is once
        await turns.wake(engine)
        await turns.wake(engine)
        await turns.wake_weights(engine)

    asyncio.run(failure())
    assert engine.calls == [("sleep", 2, "wait"), ("wake_up", ("weights", "kv_cache"))]


def test_an_engine_with_its_own_device_stays(engine: Any) -> None:
    turns = SleepMode(shared=False)

    async def step() -> None:
        await turns.sleep(engine, keep_weights=False)
        await turns.wake_weights(engine)
        await turns.wake(engine)

    asyncio.run(step())
    assert engine.calls == []


class OutOfMemoryEngine(SimulatedEngine):
    """Its key-value cache finds no room when it comes back."""

    errored = False

    async def wake_up(self, tags: list[str]) -> bool:
        if "kv_cache" in tags:
            raise MemoryError("CUDA out of memory")
        return await super().wake_up(tags)

    def __getattr__(self, name: str) -> Any:
        async def call(*_: Any, **__: Any) -> bool:
            self.calls.append((name,))
            return True

        return call


def test_an_engine_that_cannot_wake_resumes_and_is_stale() -> None:
    """Whatever fails in a publication, the scheduler is not left paused, and the engine does not serve."""
    llm = OutOfMemoryEngine()
    engine = RolloutEngine(SimpleNamespace(), EngineConfig(gpus_per_engine=1), sleeps=True)  # type: ignore[arg-type]
    engine._engine, engine._stale = llm, None  # type: ignore[assignment]

    async def publish() -> None:
        await engine.sleep()
        await engine.update_weights(7, [], Probe((1, 2), (-0.5,), 1e-3))

    with pytest.raises(PublicationError, match="CUDA out of memory"):
        asyncio.run(publish())
    assert ("resume_generation",) in llm.calls and llm.calls.index(("resume_generation",)) > llm.calls.index(
        ("pause_generation",)
    )
    with pytest.raises(StaleEngineError, match="publication of version 7 failed"):
        engine._refuse_if_stale()
