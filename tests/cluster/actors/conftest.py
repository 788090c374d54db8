"""One Ray for all pools of this folder: its start takes longer than most of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rewards.conftest import MakeGroup, build_group  # its import also lets workers find the tests' modules


@pytest.fixture(scope="package")
def ray_session() -> Iterator[None]:
    """In the place of tests/conftest.py's, which is started anew for each file. The GPUs are in Ray's books only."""
    import ray

    # `local`: never join a cluster that somebody else has on this machine.
    ray.init(
        "local",
        num_cpus=8,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def make_group() -> MakeGroup:
    return build_group
