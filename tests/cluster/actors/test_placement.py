"""Engine i, rank i and encoders land on the same GPU, as Ray sees it; no GPU is needed for Ray's books."""

from __future__ import annotations

import pytest
import ray

from cluster.actors import placement
from cluster.actors.placement import Placement, shares_gpus
from cluster.config import RunConfig, load_config

BASE = ["name=x", "model.path=m", "data.train=t"]
GPUS = ["engines.gpus_per_engine=1", "engines.count=2", "learner.gpus_per_rank=1", "learner.ranks=2", "encoder.gpus=1"]


def config(*overrides: str) -> RunConfig:
    return load_config(None, [*BASE, *overrides])


def test_everyone_has_own_devices_unless_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    for overrides in ([], GPUS, ["placement=colocated"]):
        run = config(*overrides)
        assert not shares_gpus(run)
        places = Placement(run)
        assert not caplog.records
        assert places.engine(0) == places.rank(0) == places.encoder(0) == {}


def test_shared_gpus_are_said_to_be_experimental(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "placement_group", lambda bundles: None)  # no Ray runs
    Placement(config("placement=colocated", *GPUS))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        placement.EXPERIMENTAL
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_components_of_one_index_share_a_gpu() -> None:
    class Where:
        def gpu(self) -> list[int]:
            return list(ray.get_gpu_ids())

    actor = ray.remote(num_cpus=0)(Where)
    places = Placement(config("placement=colocated", *GPUS, "encoder.count=2"))
    actors = [
        actor.options(**place(i)).remote() for i in range(2) for place in (places.engine, places.rank, places.encoder)
    ]
    found = ray.get([a.gpu.remote() for a in actors], timeout=60)
    assert found[0] == found[1] == found[2] and found[3] == found[4] == found[5]
    assert found[0] != found[3]
    for a in actors:
        ray.kill(a)
