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


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """A local Ray with logical CPUs enough for every actor of a test.

    Per module and not per session: a process has one Ray at a time, and tests/rollout needs one of its own, whose
    workers know the tests' model family.
    """
    import ray

    # `local`: never join a cluster that somebody else has on this machine.
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
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
