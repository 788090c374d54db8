"""Whether a cluster has room, may get it, and what is said of actors that wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.actors import room
from cluster.actors.remote import placed, standing
from cluster.actors.room import adds_nodes, check_room
from cluster.config import load_config
from cluster.preflight import problems_here
from speech.errors import UserError
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("ray_session")

HEAD = "node_ca10eb21d8cc04eda4688fe19ad21be26006fc2c03b28fe192282103"


@ray.remote(num_cpus=0)
class Slow:
    def __init__(self, seconds: float) -> None:
        time.sleep(seconds)

    def ready(self) -> bool:
        return True


@pytest.fixture
def actors() -> Iterator[dict[str, Any]]:
    """One that asks for more GPUs than there are, one whose constructor does not end, and one that runs."""
    made = {"rank 0": Slow.options(num_gpus=3).remote(0.0), "rank 1": Slow.remote(600.0), "rank 2": Slow.remote(0.0)}
    yield made
    for actor in made.values():
        ray.kill(actor)


def test_who_waits_for_a_place_and_who_loads(actors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    ray.get(actors["rank 2"].ready.remote())
    until(lambda: placed(actors["rank 1"]))
    no_place = "rank 0 found no place: no node has the CPUs or GPUs free that they ask for"
    assert standing(actors) == f"{no_place}; rank 1 still loaded"
    assert not placed(actors["rank 0"])
    running = {"rank 2": actors["rank 2"]}
    assert standing(running) == "all processes run (rank 2) and load their models or wait for one another"
    monkeypatch.setattr("os.getloadavg", lambda: (900.0, 0.0, 0.0))
    assert "this machine is overloaded: 900 processes want to run on" in standing(running)


def test_gpus_that_nobody_brings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(room, "STATUS_S", 0.0)
    check_room({"learner.gpus_per_rank": 2.0}, 60.0)
    wanted = {"engines.gpus_per_engine": 2.0, "learner.gpus_per_rank": 1.0}
    lack = "the run asks for 3 GPUs (engines.gpus_per_engine 2, learner.gpus_per_rank 1); the cluster has 2"
    with pytest.raises(UserError) as caught:
        check_room(wanted, 60.0)
    assert str(caught.value) == f"{lack}, and no autoscaler that would add nodes"
    monkeypatch.setattr(room, "may_grow", lambda: True)
    with caplog.at_level(logging.WARNING):
        check_room(wanted, 60.0)
    assert f"{lack}: it waits for the autoscaler, up to engines.startup_timeout_s=60 s" in caplog.text


def test_a_head_that_is_one_is_let_pass(tmp_path: Path) -> None:
    config = load_config(None, ["name=n", f"model.path={tmp_path}", f"data.train={tmp_path}", "ray.address="
                                + ray.get_runtime_context().gcs_address])  # fmt: skip
    assert "ray.address" not in [key for key, _ in problems_here(config)]


@pytest.mark.parametrize(
    ("report", "adds"),
    [
        ({"active_nodes": {HEAD: 1}, "pending_launches": {}}, False),  # `ray start --head`
        ({"active_nodes": {"ray.head.default": 1}, "pending_launches": {}}, True),  # with an autoscaling config
        ({"active_nodes": {"node_gpu": 1}, "pending_launches": None}, True),
        ({"active_nodes": {HEAD: 1}, "pending_launches": {"gpu": 1}}, True),
        (None, False),
    ],
)
def test_what_the_autoscaler_says_of_itself(report: dict[str, Any] | None, adds: bool) -> None:
    """As Ray 2.60 wrote it, in parts."""
    assert adds_nodes({"autoscaler_report": report}) == adds
