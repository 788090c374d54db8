"""Whatever goes wrong, a real engine's scheduler runs again, or the engine refuses to sample. Only the GPU's memory is
*simulated*: vLLM's sleep mode needs a GPU, so that what fails here is the shell around it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from rollout.engine import engine as engine_module
from rollout.engine.sleep_mode import SleepMode
from rollout.errors import PublicationError, StaleEngineError
from speech.errors import PhaseTimeoutError
from tests.rollout.engine_driver import Driver
from tests.rollout.tiny_lm import SAMPLING, buckets_of, make_prompts, probe_of, tiny_model


class StuckSleepMode(SleepMode):
    """Goes to sleep or wakes up only as often as it is told, and then fails."""

    def __init__(self) -> None:
        super().__init__(shared=True)
        self.fails: set[str] = set()

    async def sleep(self, engine: Any, keep_weights: bool) -> None:
        self._raise("sleep")

    async def wake_weights(self, engine: Any) -> None:
        self._raise("wake_weights")

    async def wake(self, engine: Any) -> None:
        self._raise("wake")

    def _raise(self, name: str) -> None:
        if name in self.fails:
            raise RuntimeError(f"the GPU does not {name}")


@pytest.fixture
def sound(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """The engine, healed afterwards by a good publication whatever the test did to it."""
    yield driver
    monkeypatch.undo()
    driver.publish(tiny_model(1, tied=True))
    assert driver.gap(SAMPLING) <= 1e-4


@pytest.fixture
def sleep_mode(sound: Driver, monkeypatch: pytest.MonkeyPatch) -> StuckSleepMode:
    stuck = StuckSleepMode()
    monkeypatch.setattr(sound.engine, "_sleep_mode", stuck)
    return stuck


def paused(driver: Driver) -> bool:
    return driver.run(driver.engine._live().is_paused())


def refuses(driver: Driver, reason: str) -> None:
    with pytest.raises(StaleEngineError, match=reason):
        driver.run(driver.engine.generate(*make_prompts(1), SAMPLING))


@pytest.mark.parametrize("step", ["wake_weights", "wake"])
def test_a_publication_that_cannot_wake_the_engine_resumes_it_all_the_same(
    sound: Driver, sleep_mode: StuckSleepMode, step: str
) -> None:
    sleep_mode.fails = {step}
    model = tiny_model(5, tied=True)
    with pytest.raises(PublicationError, match=f"the GPU does not {step}"):
        sound.run(sound.engine.update_weights(sound.version + 1, buckets_of(model), probe_of(model)))
    assert not paused(sound)
    refuses(sound, f"the GPU does not {step}")


@pytest.mark.parametrize("step", ["sleep", "wake"])
def test_an_engine_that_cannot_leave_or_come_back_is_stale(
    sound: Driver, sleep_mode: StuckSleepMode, step: str
) -> None:
    sleep_mode.fails = {step}
    with pytest.raises(RuntimeError, match=f"the GPU does not {step}"):
        sound.run(sound.engine.sleep(keep_weights=True) if step == "sleep" else sound.engine.wake())
    refuses(sound, f"the GPU does not {step}")


def test_an_engine_that_cannot_resume_is_stale(sound: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(engine_module, "CONTROL_TIMEOUT_S", 2.0)
    monkeypatch.setattr(sound.engine._live(), "resume_generation", hang)
    with pytest.raises(PhaseTimeoutError, match="resuming after queueing"):
        sound.run(sound.engine.generate(*make_prompts(1), SAMPLING))
    refuses(sound, "resuming after queueing` did not end within 2 s")


@pytest.mark.parametrize("call", ["pause_generation", "add_request", "resume_generation"])
def test_samples_that_are_cancelled_while_they_are_queued_leave_the_scheduler_running(
    sound: Driver, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The fleet cancels calls at any moment (`ray.cancel`). Those of others must not stay frozen."""
    live = sound.engine._live()
    real = getattr(live, call)

    async def scenario() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def slow(*args: Any, **kwargs: Any) -> Any:
            reached.set()
            await go_on.wait()
            return await real(*args, **kwargs)

        monkeypatch.setattr(live, call, slow)
        queueing = asyncio.create_task(sound.engine.generate(*make_prompts(2), SAMPLING))
        await reached.wait()
        queueing.cancel()
        await asyncio.sleep(0.1)
        queueing.cancel()  # once more, for good measure
        await asyncio.sleep(0.1)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await queueing
        monkeypatch.setattr(live, call, real)

    sound.run(scenario())
    assert not paused(sound)
    groups = sound.run(sound.engine.generate(*make_prompts(2), SAMPLING))
    assert [len(group.trajectories) for group in groups] == [4, 4]
    assert sound.run(sound.engine.health()).unfinished == 0
