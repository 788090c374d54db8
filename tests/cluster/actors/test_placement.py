"""Engine i, rank i and encoders land on the same GPU, as Ray sees it; no GPU is needed for Ray's books."""

from __future__ import annotations

import pytest
import ray

from cluster.actors.placement import Placement, shares_gpus
from cluster.config import RunConfig, load_config

BASE = ["name=x", "model.path=m", "data.train=t"]
GPUS = ["engines.gpus_per_engine=1", "engines.count=2", "learner.gpus_per_rank=1", "learner.ranks=2", "encoder.gpus=1"]


def config(*overrides: str) -> RunConfig:
    return load_config(None, [*BASE, *overrides])


def test_everyone_has_own_devices_unless_told_otherwise() -> None:
    for overrides in ([], GPUS, ["placement=colocated"]):
        run = config(*overrides)
        assert not shares_gpus(run)
        placement = Placement(run)
        assert placement.engine(0) == placement.rank(0) == placement.encoder(0) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_components_of_one_index_share_a_gpu() -> None:
    class Where:
        def gpu(self) -> list[int]:
            return list(ray.get_gpu_ids())

    actor = ray.remote(num_cpus=0)(Where)
    placement = Placement(config("placement=colocated", *GPUS, "encoder.count=2"))
    actors = [
        actor.options(**place(i)).remote()
        for i in range(2)
        for place in (placement.engine, placement.rank, placement.encoder)
    ]
    found = ray.get([a.gpu.remote() for a in actors], timeout=60)
    assert found[0] == found[1] == found[2] and found[3] == found[4] == found[5]
    assert found[0] != found[3]
    for a in actors:
        ray.kill(a)
