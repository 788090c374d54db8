"""What an engine's actor makes of weights that are in no object store any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ObjectLostError

from rollout import actors
from rollout.actors import EngineActor
from rollout.errors import UnreadableError, WeightsLostError
from speech.runtime.device_weights import DeviceBucket, DeviceStage
from speech.runtime.spans import SpanRecorder
from speech.runtime.weights import WeightBucket, tensor_digest


class Engine:
    async def update_weights(self, version: int, buckets: Iterable[Any], probe: Any, in_flight: bool) -> float:
        return sum(buckets)


def test_lost_weights_are_told_from_bad_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(bucket: float) -> float:
        if bucket == 2.0:
            raise ObjectLostError("ab", None, "publish")
        return bucket

    monkeypatch.setattr(actors.ray, "get", get)
    actor = SimpleNamespace(_engine=Engine(), _spans=SpanRecorder(), _opens=True)
    update = EngineActor.__ray_metadata__.modified_class.update_weights
    assert asyncio.run(update(actor, 1, [1.0, 3.0], None)) == 4.0
    with pytest.raises(WeightsLostError, match="weights were on a node that is gone"):
        asyncio.run(update(actor, 1, [1.0, 2.0], None))


class Blind:
    """An engine that cannot read the learner's device. Notes what it gets."""

    def __init__(self) -> None:
        self.got: list[list[Any]] = []

    async def update_weights(self, version: int, buckets: Iterable[Any], probe: Any, in_flight: bool) -> float:
        self.got.append(list(buckets))
        if isinstance(self.got[-1][0], DeviceBucket):
            raise UnreadableError("peer access is not supported between these two devices")
        return 0.5


@pytest.mark.usefixtures("ray_session")
def test_an_engine_that_cannot_read_the_learners_device_gets_the_weights_through_the_host() -> None:
    """The task that reads them is a real one, in another process; the device is a CPU."""
    tensors = {"a": torch.randn(30, 40).bfloat16(), "b": torch.randn(7)}
    stage = DeviceStage(ray.get_runtime_context().get_node_id(), 4096, torch.device("cpu"))
    try:
        ref = ray.put(stage.fill(tensors.items()))
        actor = SimpleNamespace(_engine=Blind(), _spans=SpanRecorder(), _opens=True)
        update = EngineActor.__ray_metadata__.modified_class.update_weights
        for _ in range(2):
            assert asyncio.run(update(actor, 1, [ref], None)) == 0.5
        opened, read, again = (got for (got,) in actor._engine.got)
        assert isinstance(opened, DeviceBucket), "the second publication does not try"
        for bucket in (read, again):
            assert isinstance(bucket, WeightBucket)
            assert bucket.digests == {name: tensor_digest(tensor) for name, tensor in tensors.items()}
            assert all(torch.equal(bucket.tensors[name], tensor) for name, tensor in tensors.items())
        stage._buffer[300] ^= 1
        with pytest.raises(ValueError, match="tensor a arrived changed"):
            asyncio.run(update(actor, 1, [ref], None))
        assert stage.reclaim()
        with pytest.raises(WeightsLostError, match=r"given up|No such file"):
            asyncio.run(update(actor, 1, [ref], None))
    finally:
        stage.remove()
