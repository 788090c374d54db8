"""The supervisor on a clock that moves when told to, with the actors of test_fleet.py in the place of engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster.actors.model import ModelRef
from cluster.fleet import replica as engine_member
from cluster.fleet import supervisor as engine_supervisor
from cluster.fleet.health import BACKOFF_S, State
from cluster.fleet.replica import Publication
from cluster.fleet.rollout_future import FleetError
from cluster.fleet.supervisor import Supervisor
from rollout.config import EngineConfig
from tests.cluster.fleet.test_fleet import PROBES, StandIn

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_member, "EngineActor", StandIn)
    monkeypatch.setattr(engine_member, "engine_options", lambda config: {"num_cpus": 0})


def tick_until(supervisor: Supervisor, now: float, condition: Callable[[], bool]) -> None:
    """Look again and again without the clock moving; the actors are real, and take their time. Nor may a test move the
    clock by a heartbeat time-out: it would give up an engine whose answer is on its way."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        supervisor.tick(now)
        time.sleep(0.02)


def kill(actor: Any) -> None:
    """Kill an actor, and return once it is dead: a heartbeat that it still answers would be the last on this clock."""
    ray.kill(actor)
    with pytest.raises(RayActorError):
        while True:
            ray.get(actor.health.remote())


def test_restarts_of_one_engine_wait_longer_and_longer_but_the_first_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A start that fails because the dead engine's children still hold the GPU must not use up all attempts."""
    (tmp_path / "gpu-held").touch()
    supervisor = Supervisor(ModelRef(str(tmp_path), None), EngineConfig(max_failures=4))
    supervisor.own_version = 0
    supervisor.tick(0.0)
    (replica,) = supervisor.replicas
    tick_until(supervisor, 1.0, lambda: replica.health.failures == 1)
    assert supervisor.restarts == 1 and replica.health.state is State.RESTARTING, "at once"
    tick_until(supervisor, 1.0, lambda: replica.health.failures == 2)
    assert f"no memory is free on the GPU; it is not started again for {BACKOFF_S:.0f} s" in caplog.text
    for now in (1.0, 0.99 + BACKOFF_S):
        supervisor.tick(now)
        assert supervisor.restarts == 1 and replica.health.state is State.DEAD
    now = 1.0 + BACKOFF_S
    supervisor.tick(now)
    assert supervisor.restarts == 2
    tick_until(supervisor, now, lambda: replica.health.failures == 3)
    (tmp_path / "gpu-held").unlink()
    supervisor.tick(now + 1.99 * BACKOFF_S)
    assert supervisor.restarts == 2 and supervisor.fatal is None
    now += 2 * BACKOFF_S
    tick_until(supervisor, now, lambda: replica.health.serves)
    assert supervisor.restarts == 3
    replica.end()


@pytest.mark.parametrize("fewest", [1, 2])
def test_an_engine_is_given_up_beside_one_that_still_loads_weights(
    tmp_path: Path, fewest: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the fleet would be smaller than `engines.min` then."""
    supervisor = Supervisor(ModelRef(str(tmp_path), None), EngineConfig(count=2, min=fewest, max_failures=1))
    tick_until(supervisor, 0.0, lambda: [m.health.state for m in supervisor.replicas] == [State.STALE] * 2)
    first, second = supervisor.replicas
    kill(first.actor)
    tick_until(supervisor, 10.0, lambda: first.health.state is State.RETIRED or supervisor.fatal is not None)
    if fewest == 1:
        assert supervisor.replicas == [second] and supervisor.wanted == 1 and supervisor.fatal is None
        assert "the fleet goes on without it" in caplog.text
    else:
        assert isinstance(supervisor.fatal, FleetError) and "engine 0 failed 1 times in a row" in str(supervisor.fatal)
    second.end()


def test_the_engine_that_has_not_started_goes_first(tmp_path: Path) -> None:
    """As in the pools: the one that serves would take its work, and its caches, with it."""
    supervisor = Supervisor(ModelRef(str(tmp_path), None), EngineConfig(count=3))
    supervisor.own_version = 0
    tick_until(supervisor, 0.0, lambda: [m.health.serves for m in supervisor.replicas] == [True] * 3)
    first, second, third = supervisor.replicas
    (tmp_path / "gpu-held").touch()
    kill(first.actor)
    tick_until(supervisor, 10.0, lambda: first.health.failures == 2)
    assert first.health.state is State.DEAD, "it waits for its next start"
    supervisor.wanted = 2
    supervisor.tick(10.0)
    assert [m for m in supervisor.replicas if not m.leaving] == [second, third]
    supervisor.wanted = 1
    supervisor.tick(10.0)
    assert [m for m in supervisor.replicas if not m.leaving] == [second], "of those that serve, the highest place"
    for replica in supervisor.replicas:
        replica.end()


def test_somebody_looks_at_each_node_that_a_dead_engine_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that starts in the place of a dead one looks itself, on its own node. Two cases are left: it starts on
    another node, or none starts."""
    asked: list[set[str]] = []
    monkeypatch.setattr(engine_supervisor, "free_leftovers_on", lambda nodes: asked.append(set(nodes)))
    supervisor = Supervisor(ModelRef(str(tmp_path), None), EngineConfig(count=2))
    supervisor.own_version = 0
    tick_until(supervisor, 0.0, lambda: [m.health.serves for m in supervisor.replicas] == [True] * 2)
    first, second = supervisor.replicas
    here = first.node
    kill(first.actor)
    tick_until(supervisor, 10.0, lambda: first.health.failures == 1)
    tick_until(supervisor, 10.0, lambda: first.health.serves)
    assert not asked and supervisor.nodes == {here}
    second.node = "another"
    kill(second.actor)
    tick_until(supervisor, 20.0, lambda: second.health.failures == 1)
    tick_until(supervisor, 20.0, lambda: second.health.serves)
    assert asked == [{"another"}]
    supervisor.wanted = 1
    kill(second.actor)
    second.fail("it is dead", 30.0)
    tick_until(supervisor, 30.0, lambda: supervisor.replicas == [first])
    assert asked == [{"another"}, {here}]
    first.end()


def test_an_engine_that_leaves_is_not_asked_how_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It answered the heartbeat with an error, once it had been shut down, and the run ended of that."""
    config = EngineConfig(count=2, heartbeat_s=1.0)
    supervisor = Supervisor(ModelRef(str(tmp_path), None), config)
    supervisor.own_version = 0
    tick_until(supervisor, 0.0, lambda: [m.health.serves for m in supervisor.replicas] == [True] * 2)
    first, second = supervisor.replicas
    supervisor.wanted = 1
    supervisor.tick(2.0)
    assert second.leaving and second.pending("heartbeat"), "asked before it leaves"
    supervisor.tick(4.0)
    assert second.pending("shutdown") and not second.pending("heartbeat")
    with pytest.raises(RayTaskError, match="was shut down"):
        ray.get([second.actor.health.remote() for _ in range(3)])
    tick_until(supervisor, 6.0, lambda: supervisor.replicas == [first])
    assert second.health.failures == 0 and "engine 1" not in caplog.text
    first.end()


def test_an_engine_that_leaves_ends_its_publication_first(tmp_path: Path) -> None:
    """Shut down in the middle it would refuse the weights, and two that do are a fatal error of the run."""
    (tmp_path / "slow-to-publish").touch()
    supervisor = Supervisor(ModelRef(str(tmp_path), None), EngineConfig(count=2))
    supervisor.own_version = 0
    tick_until(supervisor, 0.0, lambda: [m.health.serves for m in supervisor.replicas] == [True] * 2)
    first, second = supervisor.replicas
    supervisor.publication = Publication(1, 1, [ray.put("slow-to-publish")], PROBES, 60.0, in_flight=False)
    for replica in supervisor.replicas:
        replica.health.expect(1)
    supervisor.tick(1.0)
    supervisor.wanted = 1
    for _ in range(5):
        supervisor.tick(1.0)
        time.sleep(0.02)
    assert second.leaving and second.pending("publishing") and not second.pending("shutdown")
    (tmp_path / "slow-to-publish").unlink()
    tick_until(supervisor, 1.0, lambda: supervisor.replicas == [first] and first.health.serves)
    assert supervisor.publication.refusals == 0 and supervisor.fatal is None
    first.end()
