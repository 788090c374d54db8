"""The order in which an engine leaves a GPU and comes back. vLLM's side is *simulated*: its sleep mode needs a GPU."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rollout.engine.sleep_mode import SleepMode


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
    mode = SleepMode(shared=True)

    async def step() -> None:
        await mode.sleep(engine, keep_weights=False)
        await mode.wake_weights(engine)
        assert engine.asleep == {"kv_cache"} and engine.paused
        await mode.wake(engine)

    asyncio.run(step())
    assert engine.calls == [("sleep", 2, "wait"), ("wake_up", ("weights",)), ("wake_up", ("kv_cache",))]
    assert not engine.paused


def test_weights_that_were_kept_need_no_publication(engine: Any) -> None:
    mode = SleepMode(shared=True)

    async def checkpoint() -> None:
        await mode.sleep(engine, keep_weights=True)
        await mode.wake(engine)

    asyncio.run(checkpoint())
    assert engine.calls == [("sleep", 1, "wait"), ("wake_up", ("weights", "kv_cache"))]


def test_a_publication_that_fails_half_way_wakes_what_is_left(engine: Any) -> None:
    mode = SleepMode(shared=True)

    async def failure() -> None:
        await mode.sleep(engine, keep_weights=False)
        await mode.sleep(engine, keep_weights=False)  # twice is once
        await mode.wake(engine)
        await mode.wake(engine)
        await mode.wake_weights(engine)

    asyncio.run(failure())
    assert engine.calls == [("sleep", 2, "wait"), ("wake_up", ("weights", "kv_cache"))]


def test_an_engine_with_its_own_device_stays(engine: Any) -> None:
    mode = SleepMode(shared=False)

    async def step() -> None:
        await mode.sleep(engine, keep_weights=False)
        await mode.wake_weights(engine)
        await mode.wake(engine)

    asyncio.run(step())
    assert engine.calls == []
