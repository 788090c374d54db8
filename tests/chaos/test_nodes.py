"""Several raylets on one machine: nodes that are announced to go, and nodes that just go."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from cluster.actors.remote import draining_nodes
from tests.chaos.audit import Outcome, audit
from tests.chaos.harness import SETTINGS
from tests.chaos.injector import processes
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import ROOT, training, wait_for_steps, write_config

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head node for the driver, with no room for actors."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150 * 2**20})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Cluster, cpus: int) -> Any:
    return cluster.add_node(num_cpus=cpus, object_store_memory=150 * 2**20)


def carries_an_engine(node: Any) -> bool:
    (raylet,) = node.all_processes["raylet"]
    return any(engine.ppid() == raylet.process.pid for engine in processes("engine", os.getpid()))


@ray.remote(num_cpus=1)
class Occupant:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def test_ray_tells_which_nodes_are_about_to_go(cluster: Cluster) -> None:
    add_node(cluster, 1)
    ray.init(address=cluster.address, log_to_driver=False)
    assert draining_nodes() == set()
    occupant = Occupant.remote()
    node = ray.get(occupant.node.remote())
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = time.time_ns() // 1_000_000 + 300_000
    client = ray._raylet.GcsClient(address=cluster.address)
    accepted, message = client.drain_node(node, reason, "the spot price went up", deadline)
    assert accepted, message
    end = time.monotonic() + 30
    while draining_nodes() != {node}:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert ray.get(occupant.node.remote()) == node, "what runs there goes on until the node goes"


@pytest.mark.parametrize("lost", ["one", "all"])
def test_nodes_are_lost_and_others_come(cluster: Cluster, tmp_path: Path, lost: str) -> None:
    """With all of them go the weights that were published, which no engine can have from then on."""
    model = write_demo_checkpoint(tmp_path / "tiny", scale=1.5)
    nodes = [add_node(cluster, 1), add_node(cluster, 4)]  # two engines, learner, encoder, rewards
    evaluation = {"before": False, "after": False}
    settings = SETTINGS | {"engines__count": 2, "engines__kv_cache_gb": 0.05, "evaluation": evaluation, "steps": 8}
    config = write_config(tmp_path, model, ray={"address": cluster.address}, **settings)
    folder = tmp_path / "runs" / "tiny"
    with training(config, os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}) as process:
        wait_for_steps(process, folder / "metrics.jsonl", 2)
        # Ray decides who runs where: the smaller node may carry the encoder alone.
        going = nodes if lost == "all" else [next(node for node in nodes if carries_an_engine(node))]
        for node in going:
            cluster.remove_node(node, allow_graceful=False)
        for _ in going:
            add_node(cluster, 4)
        code = process.wait(600)
    text = (tmp_path / "output.txt").read_text(encoding="utf-8")
    assert code == 0, text
    outcome = Outcome(folder, text, [])
    assert not audit(outcome, tmp_path / "train.jsonl", json.loads(config.read_text(encoding="utf-8"))["steps"]), text
    assert outcome.total("fleet/restarts") >= 1 or "restarting the learner" in text, "the node carried nothing"
