from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rollout.errors import PublicationError, StaleEngineError
from rollout.weights import staging
from rollout.weights.publication import compare
from speech.records import Group, Trajectory
from speech.runtime import shared_weights
from speech.runtime.shared_weights import Bucket, WeightFolder
from speech.runtime.weights import Probe, WeightBucket
from tests.rollout.engine_driver import Driver
from tests.rollout.tiny_lm import SAMPLING, buckets_of, make_prompts, probe_of, reference_logprobs, tiny_model

LONG = replace(SAMPLING, max_new_tokens=150, min_new_tokens=150)


@pytest.fixture(autouse=True)
def staged(tmp_path: Path) -> Iterator[Path]:
    """Where weights are staged: in no folder that others use."""
    # Not by the fixture `monkeypatch`, which would then undo what a test patches only after `sound` has published.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "SHARED_MEMORY", tmp_path)
        patch.setattr(shared_weights, "SHARED_MEMORY", tmp_path)
        yield tmp_path


@pytest.fixture
def sound(driver: Driver) -> Iterator[Driver]:
    """The engine, healed afterwards by a good publication whatever the test did to it."""
    yield driver
    driver.publish(tiny_model(1, tied=True))


def publish_badly(driver: Driver, buckets: Sequence[Bucket], probe: Probe) -> str:
    """A publication that must fail; returns its message, and checks what must hold after any failure."""
    with pytest.raises(PublicationError) as caught:
        driver.run(driver.engine.update_weights(driver.version + 1, buckets, probe))
    with pytest.raises(StaleEngineError, match=f"publication of version {driver.version + 1} failed"):
        driver.run(driver.engine.generate(*make_prompts(1), SAMPLING))
    assert driver.run(driver.engine.health()).stale is not None
    assert not driver.run(driver.engine._live().is_paused())
    assert not list(staging.SHARED_MEMORY.iterdir())
    return str(caught.value)


def in_worker(driver: Driver, function: Callable[[Any], None]) -> None:
    driver.run(driver.engine._live().collective_rpc(function))  # type: ignore[arg-type]


def disable_repair(worker: Any) -> None:
    from rollout.weights import transfer

    transfer.kept = transfer.refresh_packed_heads  # type: ignore[attr-defined]
    transfer.refresh_packed_heads = lambda model: None


def enable_repair(worker: Any) -> None:
    from rollout.weights import transfer

    transfer.refresh_packed_heads = transfer.kept  # type: ignore[attr-defined]


def disable_check(worker: Any) -> None:
    from rollout.weights import transfer

    transfer.check = transfer.check_held  # type: ignore[attr-defined]
    transfer.check_held = lambda model, names, read: None


def enable_check(worker: Any) -> None:
    from rollout.weights import transfer

    transfer.check_held = transfer.check  # type: ignore[attr-defined]


def forget_a_norm(worker: Any) -> None:
    model = worker.get_model()
    model.sound = model.load_weights
    model.load_weights = lambda weights: model.sound((n, t) for n, t in weights if n != "model.norm.weight")


def confuse_key_norms(worker: Any) -> None:
    model = worker.get_model()
    model.sound = model.load_weights
    names = [f"model.layers.{layer}.self_attn.k_norm.weight" for layer in (0, 1)]
    other = dict(zip(names, reversed(names), strict=True))
    model.load_weights = lambda weights: model.sound((other.get(n, n), t) for n, t in weights)


def load_as_before(worker: Any) -> None:
    model = worker.get_model()
    model.load_weights = model.sound


@contextmanager
def changed(driver: Driver, change: Callable[[Any], None], back: Callable[[Any], None]) -> Iterator[None]:
    in_worker(driver, change)
    try:
        yield
    finally:
        in_worker(driver, back)


def with_norms(seed: int) -> Any:
    """A model whose norms are not all alike."""
    model = tiny_model(seed, tied=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 2.0, generator=generator)
    return model


def test_logprobs_follow_the_published_weights(driver: Driver, staged: Path) -> None:
    before = driver.version
    for seed in (3, 4):
        assert driver.publish(tiny_model(seed, tied=True)) <= 1e-4
        assert driver.gap(SAMPLING) <= 1e-4
    assert driver.run(driver.engine.health()).version == before + 2
    groups = driver.run(driver.engine.generate(*make_prompts(1), SAMPLING))
    assert {(t.version_first, t.version_last) for t in groups[0].trajectories} == {(before + 2, before + 2)}
    assert not list(staged.iterdir())


def test_a_flipped_bit_is_caught_and_named_and_leaves_the_old_weights(sound: Driver) -> None:
    old = probe_of(sound.model)
    model = tiny_model(5, tied=True)
    buckets = buckets_of(model)
    name = "model.layers.1.mlp.down_proj.weight"
    bucket = next(bucket for bucket in buckets if name in bucket.tensors)
    bucket.tensors[name].view(torch.int32)[3, 5] ^= 1
    assert name in publish_badly(sound, buckets, probe_of(model))
    # Everything is verified before anything is loaded.
    answers = [sound.run(sound.engine.probe(ids)) for ids in old.sequences]
    assert compare(old, [value for answer in answers for value in answer]) <= 1e-4
    sound.publish(model)
    assert sound.gap(SAMPLING) <= 1e-4


def test_weights_in_shared_memory_are_loaded_and_a_flipped_bit_there_is_caught(sound: Driver, staged: Path) -> None:
    model, sender = tiny_model(8, tied=True), WeightFolder("here")
    buckets = [sender.add(bucket) for bucket in buckets_of(model)]
    assert sound.run(sound.engine.update_weights(sound.version + 1, buckets, probe_of(model))) <= 1e-4
    sound.version, sound.model = sound.version + 1, model
    assert sound.gap(SAMPLING) <= 1e-4
    sender.remove()

    model, sender = tiny_model(5, tied=True), WeightFolder("here")
    buckets = [sender.add(bucket) for bucket in buckets_of(model)]
    file = buckets[0].file
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # of its last tensor
    kept = staged.parent / "kept"
    file.write_bytes(content)
    file.parent.rename(kept)  # nothing but what is staged may be left in shared memory
    moved = [replace(bucket, file=kept / bucket.file.name) for bucket in buckets]
    assert f"tensor {list(buckets[0].digests)[-1]} arrived changed" in publish_badly(sound, moved, probe_of(model))


def test_missing_unknown_and_misshapen_tensors_are_listed(sound: Driver) -> None:
    model = tiny_model(5, tied=True)
    tensors, digests = {}, {}
    for bucket in buckets_of(model):
        tensors.update(bucket.tensors)
        digests.update(bucket.digests)
    del tensors["model.norm.weight"]
    tensors["language_model.norm.weight"] = torch.ones(64)
    tensors["model.embed_tokens.weight"] = torch.ones(8, 64)
    message = publish_badly(sound, [WeightBucket(tensors, digests)], probe_of(model))
    assert "missing model.norm.weight" in message
    assert "unknown language_model.norm.weight" in message
    assert "model.embed_tokens.weight is (8, 64), not (512, 64)" in message


def test_a_stale_tied_head_is_found_in_the_engine(sound: Driver) -> None:
    model = tiny_model(6, tied=True)
    with changed(sound, disable_repair, enable_repair):
        message = publish_badly(sound, buckets_of(model), probe_of(model))
    assert "that were sent: lm_head.weight does not hold model.embed_tokens.weight" in message
    sound.publish(model)
    assert sound.gap(SAMPLING) <= 1e-4


def test_a_stale_tied_head_is_caught_by_the_probe(sound: Driver) -> None:
    model = tiny_model(6, tied=True)
    with changed(sound, disable_repair, enable_repair), changed(sound, disable_check, enable_check):
        assert "nats from the learner's" in publish_badly(sound, buckets_of(model), probe_of(model))
    sound.publish(model)


def test_a_tensor_that_was_not_loaded_is_found_in_the_engine(sound: Driver) -> None:
    model = with_norms(6)
    with changed(sound, forget_a_norm, load_as_before):
        message = publish_badly(sound, buckets_of(model), probe_of(model))
    assert message.endswith("that were sent: model.norm.weight does not hold model.norm.weight")
    sound.publish(model)
    assert sound.gap(SAMPLING) <= 1e-4


def test_tensors_in_the_wrong_place_are_found_in_the_engine(sound: Driver) -> None:
    model = with_norms(6)
    with changed(sound, confuse_key_norms, load_as_before):
        message = publish_badly(sound, buckets_of(model), probe_of(model))
    assert all(f"model.layers.{layer}.self_attn.k_norm.weight does not hold" in message for layer in (0, 1))


def test_tensors_that_were_sent_under_wrong_names_are_caught_by_the_probe(sound: Driver) -> None:
    model, confused = with_norms(6), with_norms(6)
    with torch.no_grad():
        first, second = (layer.self_attn.k_norm.weight for layer in confused.model.layers)
        first.data, second.data = second.data, first.data
    assert "nats from the learner's" in publish_badly(sound, buckets_of(confused), probe_of(model))


def test_weights_that_are_not_those_of_the_probe_are_caught(sound: Driver) -> None:
    message = publish_badly(sound, buckets_of(tiny_model(7, tied=True)), probe_of(tiny_model(8, tied=True)))
    assert "nats from the learner's" in message


def test_a_nan_in_the_weights_is_caught(sound: Driver) -> None:
    model = tiny_model(7, tied=True)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    assert "nan nats" in publish_badly(sound, buckets_of(model), probe_of(tiny_model(7, tied=True)))


def test_a_sender_that_fails_is_named_as_the_cause(sound: Driver, staged: Path) -> None:
    def lost() -> Iterator[WeightBucket]:
        yield buckets_of(sound.model)[0]
        raise OSError("the learner is gone")

    with pytest.raises(PublicationError, match="the learner is gone"):
        sound.run(sound.engine.update_weights(sound.version + 1, lost(), probe_of(sound.model)))
    assert not list(staged.iterdir())


async def update_during_generation(driver: Driver, model: Any, *, in_flight: bool) -> list[Group]:
    running = asyncio.create_task(driver.engine.generate(*make_prompts(4), LONG))
    await asyncio.sleep(0.4)
    assert not running.done()
    await driver.engine.update_weights(driver.version + 1, buckets_of(model), probe_of(model), in_flight=in_flight)
    return await running


def test_samples_in_flight_continue_with_the_new_weights(sound: Driver) -> None:
    old, new = sound.model, tiny_model(9, tied=True)
    groups = sound.run(update_during_generation(sound, new, in_flight=True))
    sound.version += 1
    _, audio = make_prompts(4)
    mixed = 0
    for group, item in zip(groups, audio, strict=True):
        for t in group.trajectories:
            assert len(t.token_ids) == 150
            mixed += t.version_first < t.version_last
            assert switches_once(t, *(reference_logprobs(model, item, t, LONG) for model in (old, new)))
    assert mixed > 0


def switches_once(trajectory: Trajectory, old: torch.Tensor, new: torch.Tensor) -> bool:
    """Are the log-probs the old model's up to some token and the new model's from there on?"""
    values = torch.tensor(trajectory.logprobs)
    by_old, by_new = (values - old).abs() < 1e-3, (values - new).abs() < 1e-3
    return any(bool(by_old[:i].all() and by_new[i:].all()) for i in range(len(values) + 1))


def test_samples_are_finished_with_the_old_weights_otherwise(sound: Driver) -> None:
    groups = sound.run(update_during_generation(sound, tiny_model(9, tied=True), in_flight=False))
    assert {(t.version_first, t.version_last) for g in groups for t in g.trajectories} == {(sound.version,) * 2}
    sound.version += 1


def test_samples_drawn_by_unproved_weights_are_never_returned(sound: Driver) -> None:
    async def scenario() -> None:
        running = asyncio.create_task(sound.engine.generate(*make_prompts(4), LONG))
        await asyncio.sleep(0.4)
        model, other = tiny_model(7, tied=True), tiny_model(8, tied=True)
        with pytest.raises(PublicationError):
            await sound.engine.update_weights(sound.version + 1, buckets_of(model), probe_of(other), in_flight=True)
        with pytest.raises(StaleEngineError):
            await running

    sound.run(scenario())
    assert sound.run(sound.engine.health()).unfinished == 0


def test_a_phase_that_hangs_is_named(sound: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(sound.engine._live(), "start_weight_update", hang)
    monkeypatch.setattr(sound.engine._config, "update_timeout_s", 1.0)
    message = publish_badly(sound, buckets_of(sound.model), probe_of(sound.model))
    assert "phase `starting the weight update` did not end within 1 s" in message
