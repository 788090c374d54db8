"""Expensive things that many tests share: Ray, and small real models written once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: test processes share two cores with Ray's actors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

# No test depends on the speed of the machine, and so no example on how long it took.
settings.register_profile("speechrl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("speechrl")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, the tests of a file share one, and so do those of the session's engine."""
    for item in items:
        shared = "driver" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("engine" if shared else str(item.path)))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of a Ray with logical CPUs and GPUs enough for every actor of a test; the GPUs are in its books only."""
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": 8, "num_gpus": 2, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**resources, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def ray_session(ray_cluster: str) -> Iterator[None]:
    """A job of this file's: its actors end with it."""
    import ray

    ray.init(ray_cluster, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny demo-family checkpoint with random weights (tied embeddings)."""
    from tests.demo_checkpoint import write_demo_checkpoint

    return write_demo_checkpoint(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="session")
def sharp_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with scaled weights: its distributions are far from uniform."""
    from tests.demo_checkpoint import write_demo_checkpoint

    return write_demo_checkpoint(tmp_path_factory.mktemp("sharp") / "model", scale=2.0)


@pytest.fixture(scope="session")
def token2text_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Token2Text model with random weights, of the codec in `tests.learner.losses.test_diffro`."""
    from tests.learner.losses.test_diffro import reward_model

    folder = tmp_path_factory.mktemp("judge") / "token2text"
    reward_model().save(folder)
    return folder
