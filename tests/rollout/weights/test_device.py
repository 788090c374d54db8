"""Weights that an engine reads from a buffer of the sender, and not from files.

The engine is real, and a process of its own; so is the life cycle. The device is a CPU: the buffer is torch's shared
memory, in the place of a GPU's (tests/gpu/test_weights_on_gpu.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rollout.errors import PublicationError, UnreadableError, WeightsLostError
from rollout.leftovers import free_leftovers
from rollout.weights.publication import compare
from rollout.weights.staging import staged
from speech.runtime import device_weights
from speech.runtime.device_weights import DeviceBucket, DeviceStage, staged_size
from tests.rollout.engine_driver import Driver
from tests.rollout.tiny_lm import SAMPLING, probe_of, tiny_model


@pytest.fixture
def sound(driver: Driver) -> Iterator[Driver]:
    yield driver
    driver.publish(tiny_model(1, tied=True))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceStage]:
    monkeypatch.setattr(device_weights, "SHARED_MEMORY", tmp_path)
    size = staged_size(parameter.nbytes for parameter in tiny_model(0, tied=True).parameters())
    stage = DeviceStage("node", size, torch.device("cpu"))
    yield stage
    stage.remove()


def fill(stage: DeviceStage, model: PreTrainedModel) -> DeviceBucket:
    assert stage.reclaim()
    return stage.fill((name, parameter.detach()) for name, parameter in model.named_parameters())


def publish(driver: Driver, bucket: DeviceBucket, model: PreTrainedModel, **options: Any) -> float:
    return driver.run(driver.engine.update_weights(driver.version + 1, [bucket], probe_of(model), **options))


def answers_as_before(driver: Driver) -> bool:
    probe = probe_of(driver.model)
    answers = [driver.run(driver.engine.probe(ids)) for ids in probe.sequences]
    return compare(probe, [value for answer in answers for value in answer]) <= 1e-4


def test_one_publication_after_another_is_loaded_from_the_buffer(sound: Driver, stage: DeviceStage) -> None:
    for seed in (3, 4):
        model = tiny_model(seed, tied=True)
        assert publish(sound, fill(stage, model), model) <= 1e-4
        sound.version, sound.model = sound.version + 1, model
        assert sound.gap(SAMPLING) <= 1e-4
    stage._buffer.zero_()  # the engine has copies
    assert answers_as_before(sound)


def test_a_wrong_tensor_is_refused_by_name_and_the_engine_serves_on(sound: Driver, stage: DeviceStage) -> None:
    model, name = tiny_model(5, tied=True), "model.layers.1.mlp.down_proj.weight"
    bucket = fill(stage, model)
    stage._buffer[bucket.tensors[name][0] + 77] ^= 1
    with pytest.raises(UnreadableError, match=f"version {sound.version} is served on: .*tensor {name} arrived changed"):
        publish(sound, bucket, model)
    assert sound.run(sound.engine.health()).stale is None
    assert answers_as_before(sound) and sound.gap(SAMPLING) <= 1e-4
    assert stage.reclaim(), "its lease has ended"


def test_a_buffer_that_cannot_be_opened_is_refused(sound: Driver, stage: DeviceStage) -> None:
    model = tiny_model(5, tied=True)
    bucket = fill(stage, model)
    manager, _, size = bucket.handle
    with pytest.raises(UnreadableError, match="unable to open shared memory object"):
        publish(sound, replace(bucket, handle=(manager, b"/nowhere".hex(), size)), model)
    assert answers_as_before(sound)


def test_names_and_shapes_are_compared_before_anything_is_opened(sound: Driver, stage: DeviceStage) -> None:
    model = tiny_model(5, tied=True)
    bucket = fill(stage, model)
    short = {name: place for name, place in bucket.tensors.items() if name != "model.norm.weight"}
    with pytest.raises(PublicationError, match=r"missing model\.norm\.weight"):
        publish(sound, replace(bucket, tensors=short), model)


def test_weights_that_were_given_up_are_lost(sound: Driver, stage: DeviceStage) -> None:
    model = tiny_model(5, tied=True)
    bucket = fill(stage, model)
    assert stage.reclaim()
    with pytest.raises(WeightsLostError, match="given up these weights for newer ones"):
        publish(sound, bucket, model)


SENDER = """
import json, torch
from dataclasses import asdict
from speech.runtime.device_weights import DeviceStage
bucket = DeviceStage("node", 256, torch.device("cpu")).fill([("a", torch.ones(2))])
print(json.dumps(asdict(bucket)), flush=True)
input()
"""


def test_a_learner_that_ends_while_it_is_read_has_lost_its_weights() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    pipe = subprocess.PIPE
    sender = subprocess.Popen([sys.executable, "-c", SENDER], stdin=pipe, stdout=pipe, text=True, env=environment)
    assert sender.stdout is not None
    bucket = DeviceBucket(**json.loads(sender.stdout.readline()))

    async def use() -> None:
        async with staged([bucket], {"a": (2,)}, 10.0) as weights:
            assert weights.device is bucket and not weights.files
            sender.kill()
            sender.wait()
            raise UnreadableError("CUDA error: invalid resource handle")

    with pytest.raises(WeightsLostError, match="ended while its weights were read"):
        asyncio.run(use())
    free_leftovers()
    assert not Path(bucket.lease).parent.exists()


def overwrite_while_loading(worker: Any) -> None:
    """As if the sender's memory changed after it was verified, for good."""
    from rollout.weights import transfer

    def then_changed(engine: Any, names: Any, read: Any) -> None:
        read("model.norm.weight").zero_()
        transfer.kept(engine, names, read)  # type: ignore[attr-defined]

    transfer.kept = transfer.ObjectStoreTransferEngine._load  # type: ignore[attr-defined]
    transfer.ObjectStoreTransferEngine._load = then_changed  # type: ignore[method-assign]


def keep_what_is_sent(worker: Any) -> None:
    """As a loader that takes the sent tensor itself for the parameter."""
    from rollout.weights import transfer

    def then_kept(engine: Any, names: Any, read: Any) -> None:
        transfer.kept(engine, names, read)  # type: ignore[attr-defined]
        engine.model.model.norm.weight.data = read("model.norm.weight")

    transfer.kept = transfer.ObjectStoreTransferEngine._load  # type: ignore[attr-defined]
    transfer.ObjectStoreTransferEngine._load = then_kept  # type: ignore[method-assign]


def load_as_before(worker: Any) -> None:
    from rollout.weights import transfer

    transfer.ObjectStoreTransferEngine._load = transfer.kept  # type: ignore[attr-defined, method-assign]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (overwrite_while_loading, "tensor model.norm.weight arrived changed"),
        (keep_what_is_sent, "the learner's memory in the place of copies: model.norm.weight"),
    ],
)
def test_memory_that_changes_later_is_no_copy(sound: Driver, stage: DeviceStage, change: Any, message: str) -> None:
    model = tiny_model(6, tied=True)
    bucket = fill(stage, model)
    sound.run(sound.engine._live().collective_rpc(change))  # type: ignore[arg-type]
    try:
        with pytest.raises(PublicationError, match=message) as caught:
            publish(sound, bucket, model)
        assert not isinstance(caught.value, UnreadableError)
    finally:
        sound.run(sound.engine._live().collective_rpc(load_as_before))  # type: ignore[arg-type]
    assert sound.run(sound.engine.health()).stale is not None
