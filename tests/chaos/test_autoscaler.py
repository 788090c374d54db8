"""A whole run on a cluster that Ray's own autoscaler sizes.

Ray's fake multi-node provider "rents" a node by starting another raylet on this machine; all else is what runs in
production: the autoscaler (version 2, as under KubeRay) sees an engine without a place, adds a node of the fitting
type, and takes it away when it was idle. `ray.cluster_utils.AutoscalingCluster` would be the usual way to it, but its
start and shutdown end every Ray of the machine, and it needs a file that Ray's wheel lacks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import GcsClient

from tests.chaos.audit import Outcome, audit
from tests.chaos.harness import SETTINGS, STORE_BYTES
from tests.chaos.recovery import generations
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.ray_head import Head, ray_head
from tests.end_to_end.runs import ROOT, records, training, write_config

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider"
HEAD_NODE = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""What the provider takes for the head's id."""
NOTHING = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
)
"""What would prepare a rented machine; there is none."""
HEAD_CPUS, NODE_CPUS = 4, 1
"""The head has room for encoder, learner, rewards (0.1) and one engine; a node that comes, for one engine."""
BATCH = 4
SETTING: dict[str, Any] = {
    "steps": 1000,  # the test stops it
    # A few samples at a time, and long ones: at first the learner mostly waits for them.
    "sampling": {"group_size": 8, "temperature": 1.0, "max_new_tokens": 200, "min_new_tokens": 1},
    "engines": {
        "threads": 1,
        "min": 1,
        "max": 2,
        "max_model_len": 360,
        "max_num_seqs": 4,
        "kv_cache_gb": 0.05,
        "generate_timeout_s": 600.0,
    },
    "data__batch_prompts": BATCH,
    "data__replay": None,
    "data__replay_weight": 0.0,
    "learner__lr": 0.01,
    "learner__loss": {"kl_coef": 0.0},
    "learner__zero_variance": "keep",  # a step has the same work whatever its rewards
    "checkpoint__every": 10,
}


def autoscaling(gcs: str, folder: Path) -> Sequence[str]:
    config = {
        "cluster_name": "fake",
        "max_workers": 1,
        "idle_timeout_minutes": 0.1,
        "provider": {
            # By its class: the provider's own name leads to the file that is not there.
            "type": "external",
            "module": f"{PROVIDER}.FakeMultiNodeProvider",
            "gcs_address": gcs,
            "head_node_id": HEAD_NODE,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        **{key: [] for key in NOTHING},
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": HEAD_CPUS}, "node_config": {}, "max_workers": 0},
            "engine": {
                "resources": {"CPU": NODE_CPUS, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 1,
            },
        },
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return ["--autoscaling-config", str(file)]


@pytest.fixture
def head() -> Iterator[Head]:
    environment = {
        "PYTHONPATH": str(ROOT),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_NODE,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE,
    }
    with ray_head(None, HEAD_CPUS, environment, autoscaling) as head:
        yield head


@dataclass
class Run:
    """A `speechrl train` in progress."""

    process: subprocess.Popen[str]
    folder: Path
    head: Head
    output: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        file = self.folder / "metrics.jsonl"
        return records(file) if file.exists() else []

    @property
    def engines(self) -> int:
        """That served at the end of the last step."""
        return int(self.metrics[-1]["fleet/healthy"]) if self.metrics else 0

    @property
    def nodes(self) -> int:
        return sum(node.state == 0 for node in GcsClient(address=self.head.gcs).get_all_node_info().values())

    def until(self, what: str, reached: Callable[[], bool], timeout: float = 900) -> int:
        """Wait; returns the last step that was recorded before it was so."""
        deadline = time.monotonic() + timeout
        while not reached():
            assert self.process.poll() is None, self.output.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, f"not within {timeout} s: {what}; {self.metrics[-1:]}"
            time.sleep(0.2)
        return len(self.metrics)

    def steps_more(self, count: int) -> None:
        step = len(self.metrics)
        self.until(f"{count} more steps", lambda: len(self.metrics) >= step + count)


@contextmanager
def running(config: Path, head: Head) -> Iterator[Run]:
    with training(config, head.environment) as process:
        yield Run(process, config.parent / "runs" / "tiny", head, config.with_name("output.txt"))


def test_a_run_grows_and_shrinks_with_its_cluster(head: Head, tmp_path: Path) -> None:
    """The learner waits for long samples: the fleet grows, and with it the cluster. Then shorter samples are worth
    more, the policy learns to be brief, the second engine is idle: the fleet shrinks, and so does the cluster.

    That throughput rises is shown as work: each engine samples half of the prompts. As time it cannot be shown where
    both engines share two cores with the learner.
    """
    model = write_demo_checkpoint(tmp_path / "tiny", scale=1.5)
    marker = tmp_path / "be-brief"
    reward = {"name": "tests.chaos.brevity:brevity", "options": {"marker": str(marker)}}
    heartbeats = {key.partition("__")[2]: value for key, value in SETTINGS.items() if key.startswith("engines__")}
    settings = SETTING | {
        "engines": heartbeats | SETTING["engines"],
        "rewards": {"items": [reward]},
        "evaluation": SETTINGS["evaluation"],
        "ray": {"address": head.gcs},
    }
    with running(write_config(tmp_path, model, **settings), head) as run:
        run.until("a step", lambda: run.engines == 1)
        assert run.nodes == 1
        run.until("the cluster grows", lambda: run.nodes == 2)
        both = run.until("the second engine serves", lambda: run.engines == 2)
        run.steps_more(3)
        marker.touch()
        until = run.until("the fleet shrinks", lambda: run.engines == 1)
        run.until("the cluster shrinks", lambda: run.nodes == 1)
        run.steps_more(3)
        os.kill(run.process.pid, signal.SIGINT)
        assert run.process.wait(120) == 130, run.output.read_text(encoding="utf-8")
        metrics = run.metrics
    steps = len(metrics)
    outcome = Outcome(run.folder, run.output.read_text(encoding="utf-8"), [])
    assert not audit(outcome, tmp_path / "train.jsonl", steps), outcome.output
    assert outcome.total("fleet/restarts") == outcome.total("fleet/reissued") == 0, "nobody was lost"

    log = records(run.folder / "log.jsonl")
    grown = next(line["step"] for line in log if line["message"].startswith("fleet: from 1 to 2 engines"))
    joined = next(line["step"] for line in log if line["message"].startswith("engine 1: started"))
    shrunk = next(line["step"] for line in log if line["message"].startswith("fleet: from 2 to 1 engines"))
    assert grown < joined < both <= shrunk <= until < steps, "training went on while engines came and went"

    work = generations(run.folder / "timeline.json")
    shared = {step: [done.engine for done in work if done.step == step] for step in range(both + 1, shrunk)}
    assert len(shared) >= 3
    for step, engines in shared.items():
        # A step's prompts are cut into one piece of equal size for each engine that serves.
        assert sorted(engines) == ["engine 0", "engine 1"], f"step {step}: each engine sampled {BATCH // 2} prompts"
    assert all(done.engine == "engine 0" for done in work if not joined <= done.step <= until + 1), (
        "and before and after"
    )
    longest = max(metrics[step - 1]["rollout/length_mean"] for step in shared)
    assert metrics[-1]["rollout/length_mean"] < longest / 4, "the policy has learned to be brief"
