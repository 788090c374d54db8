"""The fleet while Ray itself fails: a head that does not answer for a while, and calls that raise."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RpcError

from cluster.fleet import fleet as fleet_module
from cluster.fleet import replica as engine_member
from cluster.fleet import supervisor
from cluster.fleet.fleet import EngineFleet
from cluster.fleet.health import HealthLimits, Outage
from tests.cluster.fleet.test_fleet import SAMPLING, StandIn, Start, generate, order, publish, start  # noqa: F401
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("ray_session")


class Weather:
    """Decides which of Ray's calls fail: each one with probability `risk`."""

    def __init__(self) -> None:
        self.risk, self.failed = 0.0, 0
        self._draw = random.Random(5)

    def pass_through(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self._draw.random() < self.risk:
                self.failed += 1
                raise RpcError("the head is unavailable")
            return call(*args, **kwargs)

        return called


class Handle:
    """An actor whose calls may not go out."""

    def __init__(self, actor: Any, weather: Weather) -> None:
        self.actor, self._weather = actor, weather

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.actor, name)
        return SimpleNamespace(
            remote=self._weather.pass_through(method.remote),
            options=lambda **options: SimpleNamespace(
                remote=self._weather.pass_through(method.options(**options).remote)
            ),
        )


@pytest.fixture
def weather(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:  # noqa: F811
    """Stands between the fleet and Ray; fair at first, and again when the fleet is shut down."""
    sky = Weather()

    class Actor:
        @staticmethod
        def options(**options: Any) -> Any:
            created = sky.pass_through(StandIn.options(**options).remote)  # type: ignore[attr-defined]
            return SimpleNamespace(remote=lambda *args: Handle(created(*args), sky))

    raining = SimpleNamespace(
        wait=sky.pass_through(ray.wait),
        get=sky.pass_through(ray.get),
        kill=lambda handle: sky.pass_through(ray.kill)(handle.actor),
        cancel=ray.cancel,
        ObjectRef=ray.ObjectRef,
    )
    monkeypatch.setattr(engine_member, "EngineActor", Actor)
    for module in (engine_member, supervisor):
        monkeypatch.setattr(module, "ray", raining)
    yield sky
    sky.risk = 0.0


def actors() -> set[str]:
    """Ids of the stand-ins that live or will, those of earlier tests included."""
    found = ray._private.state.actors()
    return {name for name, actor in found.items() if actor["State"] != "DEAD"}


def test_a_head_that_does_not_answer_does_not_hold_up_the_fleet(start: Start) -> None:  # noqa: F811
    """Its process is stopped and goes on, for real. Which nodes will go is not known then, but engines do work."""
    fleet = start(count=2)
    publish(fleet, 1)
    (gcs,) = (p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server")
    gcs.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1.0)  # the question for such nodes is asked, and not answered
        groups: list[Any] = []
        work = threading.Thread(target=lambda: groups.extend(generate(fleet, "a", "b", "c")))
        work.start()
        work.join(20.0)
        assert groups == ["a@1", "b@1", "c@1"]
    finally:
        gcs.send_signal(signal.SIGCONT)
    work.join()


def test_errors_of_ray_are_borne_and_reported_once(
    start: Start,  # noqa: F811
    weather: Weather,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = start()
    publish(fleet, 1)
    waiting = fleet.submit(*order("slow", "b"), SAMPLING)
    weather.risk = 1.0
    until(lambda: weather.failed > 10)
    weather.risk = 0.0
    assert waiting.result(60.0) == ["slow@1", "b@1"] and fleet.counts().restarts == 0
    assert caplog.text.count("Ray fails the fleet: the head is unavailable") == 1


def test_errors_of_ray_that_do_not_end_reach_whoever_waits(start: Start, weather: Weather) -> None:  # noqa: F811
    fleet = start()
    publish(fleet, 1)
    fleet._outage = Outage(0.5)
    weather.risk = 1.0
    with pytest.raises(RpcError, match="the head is unavailable"):
        generate(fleet, "a", timeout=None)
    weather.risk = 0.0


def test_nodes_are_asked_for_again_when_ray_did_not_tell(
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[Any] = [ConnectionError("no head")] * 3

    def draining() -> set[str]:
        if answers:
            raise answers.pop()
        return {"doomed"}

    monkeypatch.setattr(fleet_module, "draining_nodes", draining)
    fleet = start(count=2)
    publish(fleet, 1)
    first = fleet.replicas()[0]
    first.node = "doomed"
    until(lambda: first not in fleet.replicas())
    assert not answers and "the nodes thread failed to look (failure 2)" in caplog.text
    assert generate(fleet, "a", "b") == ["a@1", "b@1"]


@pytest.mark.slow
def test_nothing_is_lost_or_done_twice_whichever_of_rays_calls_fail(
    start: Start,  # noqa: F811
    weather: Weather,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every third call raises, in any order, while engines die. The fleet neither forgets a piece of work or an engine
    nor believes what did not happen."""
    monkeypatch.setattr(engine_member, "HealthLimits", lambda *args: HealthLimits(*args, backoff_s=0.1))
    monkeypatch.setattr(fleet_module, "TICK_S", 0.05)
    of_others = actors()
    fleet: EngineFleet = start(count=2, max_failures=1000, heartbeat_timeout_s=20.0)
    for version in range(1, 7):
        publish(fleet, version)
        weather.risk = 0.3
        if version % 2:
            ray.kill(fleet.replicas()[version % 3 % 2].actor.actor)
        names = [f"{version}-{i}" for i in range(6)]
        assert generate(fleet, *names, timeout=None) == [f"{name}@{version}" for name in names]
        assert fleet.stats().prompts <= 6 * version, "none is counted twice"
        weather.risk = 0.0
    until(lambda: fleet.counts().healthy == 2)
    assert weather.failed > 50 and fleet.counts().restarts >= 3 and len(fleet._engines.work) == 0
    until(lambda: len(actors() - of_others) == 2)  # none was forgotten and lives on
