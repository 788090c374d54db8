"""What an engine's actor makes of weights that are in no object store any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectLostError

from rollout import actors
from rollout.actors import EngineActor
from rollout.errors import WeightsLostError
from speech.runtime.spans import SpanRecorder


class Engine:
    async def update_weights(self, version: int, buckets: Iterable[Any], probe: Any, in_flight: bool) -> float:
        return sum(buckets)


def test_lost_weights_are_told_from_bad_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(bucket: float) -> float:
        if bucket == 2.0:
            raise ObjectLostError("ab", None, "publish")
        return bucket

    monkeypatch.setattr(actors.ray, "get", get)
    actor = SimpleNamespace(_engine=Engine(), _spans=SpanRecorder())
    update = EngineActor.__ray_metadata__.modified_class.update_weights
    assert asyncio.run(update(actor, 1, [1.0, 3.0], None)) == 4.0
    with pytest.raises(WeightsLostError, match="weights were on a node that is gone"):
        asyncio.run(update(actor, 1, [1.0, 2.0], None))
