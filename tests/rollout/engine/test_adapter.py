"""Adapters in a real engine, against the merged model in plain transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rollout.errors import PublicationError, RefusedError, StaleEngineError
from rollout.weights.publication import compare
from speech.records import PromptLayout
from speech.runtime.weights import AdapterBucket
from tests.rollout.engine_driver import Driver
from tests.rollout.tiny_lm import (
    ATTENTION,
    CONFIG,
    MLP,
    SAMPLING,
    TinyFamily,
    adapter_of,
    buckets_of,
    make_prompts,
    probe_of,
    reference_logprobs,
    tiny_model,
    with_adapter,
)

LARGEST_RANK = 6  # which vLLM does not know: it rounds up to 8
LONG = replace(SAMPLING, max_new_tokens=150, min_new_tokens=150)
DOWN_B = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"


@pytest.fixture(scope="module")
def adaptable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """An engine that takes adapters."""
    folder = tmp_path_factory.mktemp("adaptable")
    base().save_pretrained(folder)
    driver = Driver(TinyFamily(folder), replace(CONFIG, lora_rank=LARGEST_RANK))
    yield driver
    driver.close()


def base() -> PreTrainedModel:
    return tiny_model(0, tied=True)


def make_adapter(seed: int, rank: int = 4, targets: Sequence[str] = ATTENTION + MLP) -> AdapterBucket:
    return adapter_of(base(), seed, rank, targets)


def merged(adapter: AdapterBucket) -> PreTrainedModel:
    return with_adapter(base(), adapter)


def adapt(driver: Driver, adapter: AdapterBucket, **options: Any) -> float:
    """A good publication of the next version."""
    model = merged(adapter)
    delta = driver.run(driver.engine.update_weights(driver.version + 1, [adapter], probe_of(model), **options))
    driver.version, driver.model = driver.version + 1, model
    return delta


def answers(driver: Driver) -> list[float]:
    return [v for ids in probe_of(driver.model).sequences for v in driver.run(driver.engine.probe(ids))]


def refused(driver: Driver, adapter: AdapterBucket) -> str:
    """A publication that must be refused; returns why. What was served before is served on, unchanged."""
    before = answers(driver)
    with pytest.raises(RefusedError, match=f"version {driver.version} is served on") as caught:
        driver.run(driver.engine.update_weights(driver.version + 1, [adapter], probe_of(base())))
    assert answers(driver) == before
    assert compare(probe_of(driver.model), before) <= 1e-4
    assert versions(driver) == {(driver.version, driver.version)}
    return str(caught.value)


def versions(driver: Driver) -> set[tuple[int, int]]:
    groups = driver.run(driver.engine.generate(*make_prompts(1), SAMPLING))
    return {(t.version_first, t.version_last) for group in groups for t in group.trajectories}


def with_tensors(adapter: AdapterBucket, tensors: Mapping[str, torch.Tensor]) -> AdapterBucket:
    return AdapterBucket.pack(tensors, adapter.config)


def token_gap(driver: Driver) -> float:
    """As `Driver.gap`, for a prompt of token ids alone."""
    (prompt,), (item,) = make_prompts(1)
    ids = tuple(range(30, 90))
    item = replace(item, layout=PromptLayout(ids, len(ids), 0), embeddings=None)
    (group,) = driver.run(driver.engine.generate([prompt], [item], SAMPLING))
    scored = replace(item, embeddings=torch.zeros(0, base().config.hidden_size))
    return max(
        float((reference_logprobs(driver.model, scored, t, SAMPLING) - torch.tensor(t.logprobs)).abs().max())
        for t in group.trajectories
    )


def test_it_begins_with_the_base_alone(adaptable: Driver) -> None:
    assert versions(adaptable) == {(0, 0)}
    assert adaptable.gap(SAMPLING) <= 1e-4


def test_logprobs_follow_one_adapter_after_the_other(adaptable: Driver) -> None:
    # The same prompts each time, whose keys and values are cached; smaller ranks and fewer modules after larger ones.
    for adapter in (make_adapter(1, LARGEST_RANK), make_adapter(2, 3), make_adapter(3, 4, ATTENTION), make_adapter(4)):
        before = answers(adaptable)
        assert adapt(adaptable, adapter) <= 1e-4
        assert max(abs(a - b) for a, b in zip(answers(adaptable), before, strict=True)) > 0.1
        assert adaptable.gap(SAMPLING) <= 1e-4
        assert token_gap(adaptable) <= 1e-4
        assert versions(adaptable) == {(adaptable.version, adaptable.version)}


def test_an_adapter_alone_says_what_merged_weights_say(adaptable: Driver, driver: Driver) -> None:
    adapter = make_adapter(5)
    adapt(adaptable, adapter)
    driver.publish(merged(adapter))
    alone, whole = answers(adaptable), answers(driver)
    assert max(abs(a - b) for a, b in zip(alone, whole, strict=True)) <= 1e-4


def test_a_changed_byte_is_named_and_the_adapter_before_is_served_on(adaptable: Driver) -> None:
    adapt(adaptable, make_adapter(6))
    adapter = make_adapter(7)
    adapter.tensors[DOWN_B].view(torch.int32)[3, 1] ^= 1
    assert f"tensor {DOWN_B} arrived changed" in refused(adaptable, adapter)


def test_what_does_not_fit_is_named_and_the_adapter_before_is_served_on(adaptable: Driver) -> None:
    adapt(adaptable, make_adapter(8))
    sound = make_adapter(9)
    missing = {name: tensor for name, tensor in sound.tensors.items() if name != DOWN_B}
    assert f"missing {DOWN_B}" in refused(adaptable, with_tensors(sound, missing))
    stray = "base_model.model.model.layers.7.mlp.down_proj.lora_B.weight"
    assert f"unknown {stray}" in refused(adaptable, with_tensors(sound, {**sound.tensors, stray: torch.ones(64, 4)}))
    bent = {**sound.tensors, DOWN_B: torch.ones(4, 64)}
    assert f"{DOWN_B} is (4, 64), not (64, 4)" in refused(adaptable, with_tensors(sound, bent))
    large = make_adapter(9, LARGEST_RANK + 1)
    assert f"its rank is {LARGEST_RANK + 1}, that of the engine at most {LARGEST_RANK}" in refused(adaptable, large)
    for key, value in (("use_rslora", True), ("alpha_pattern", {"q_proj": 3}), ("bias", "all")):
        assert key in refused(adaptable, AdapterBucket(sound.tensors, sound.digests, {**sound.config, key: value}))
    nowhere = AdapterBucket(sound.tensors, sound.digests, {**sound.config, "target_modules": ["c_attn"]})
    assert "the model has no module c_attn" in refused(adaptable, nowhere)
    assert "without adapters: model.layers.0.self_attn.q_norm" in refused(adaptable, norms(sound))


def norms(adapter: AdapterBucket) -> AdapterBucket:
    """As if a module could have one that has none in vLLM."""
    name = "base_model.model.model.layers.{}.self_attn.q_norm.lora_{}.weight"
    tensors = {
        name.format(layer, which): torch.ones(4, 32) if which == "A" else torch.ones(32, 4)
        for layer in (0, 1)
        for which in "AB"
    }
    return AdapterBucket.pack(tensors, {**adapter.config, "target_modules": ["q_norm"]})


def test_an_adapter_that_is_not_that_of_the_probe_is_caught(adaptable: Driver) -> None:
    adapt(adaptable, make_adapter(10))
    probe = probe_of(merged(make_adapter(11)))
    with pytest.raises(PublicationError, match="nats from the learner's"):
        adaptable.run(adaptable.engine.update_weights(adaptable.version + 1, [make_adapter(12)], probe))
    with pytest.raises(StaleEngineError):
        versions(adaptable)
    with pytest.raises(RefusedError, match="nothing is served on"):
        large = make_adapter(9, LARGEST_RANK + 1)
        adaptable.run(adaptable.engine.update_weights(adaptable.version + 1, [large], probe))
    with pytest.raises(StaleEngineError):
        versions(adaptable)
    adapt(adaptable, make_adapter(11))
    assert versions(adaptable) == {(adaptable.version, adaptable.version)}


def mix_up_slices(worker: Any) -> None:
    """The fault that only a comparison finds for sure: k and v in each other's place."""
    layer = worker.get_model().lora_manager.modules["model.layers.1.self_attn.qkv_proj"]
    kind = type(layer)
    kind.kept = kind.set_lora
    kind.set_lora = lambda self, index, a, b: kind.kept(self, index, [a[0], a[2], a[1]], [b[0], b[2], b[1]])


def put_slices_right(worker: Any) -> None:
    layer = worker.get_model().lora_manager.modules["model.layers.1.self_attn.qkv_proj"]
    type(layer).set_lora = type(layer).kept


def test_matrices_in_the_wrong_place_are_found_in_the_engine(adaptable: Driver) -> None:
    engine = adaptable.engine._live()
    adaptable.run(engine.collective_rpc(mix_up_slices))  # type: ignore[arg-type]
    adapter = make_adapter(13)
    with pytest.raises(PublicationError, match=r"k_proj\.lora_A does not hold what was sent") as caught:
        adaptable.run(adaptable.engine.update_weights(adaptable.version + 1, [adapter], probe_of(merged(adapter))))
    assert "v_proj.lora_B does not hold" in str(caught.value)
    with pytest.raises(StaleEngineError):
        versions(adaptable)
    adaptable.run(engine.collective_rpc(put_slices_right))  # type: ignore[arg-type]
    assert adapt(adaptable, adapter) <= 1e-4


async def adapt_during_generation(driver: Driver, adapter: AdapterBucket, in_flight: bool) -> list[Any]:
    running = asyncio.create_task(driver.engine.generate(*make_prompts(4), LONG))
    await asyncio.sleep(0.4)
    assert not running.done()
    probe = probe_of(merged(adapter))
    await driver.engine.update_weights(driver.version + 1, [adapter], probe, in_flight=in_flight)
    return await running


@pytest.mark.parametrize("in_flight", [False, True])
def test_samples_in_flight_continue_with_the_new_adapter_or_end_before(adaptable: Driver, in_flight: bool) -> None:
    adapt(adaptable, make_adapter(14))
    old, adapter = adaptable.model, make_adapter(15)
    new = merged(adapter)
    groups = adaptable.run(adapt_during_generation(adaptable, adapter, in_flight))
    adaptable.version, adaptable.model = adaptable.version + 1, new
    mixed = 0
    for group, item in zip(groups, make_prompts(4)[1], strict=True):
        for t in group.trajectories:
            values = torch.tensor(t.logprobs)
            by_old, by_new = ((values - reference_logprobs(m, item, t, LONG)).abs() < 1e-3 for m in (old, new))
            assert any(bool(by_old[:i].all() and by_new[i:].all()) for i in range(len(values) + 1))
            mixed += t.version_first < t.version_last
            assert in_flight or t.version_last == adaptable.version - 1
    assert bool(mixed) == in_flight


def test_full_weights_are_refused(adaptable: Driver) -> None:
    adapt(adaptable, make_adapter(16))
    buckets, probe = buckets_of(base()), probe_of(base())
    with pytest.raises(RefusedError, match="takes adapters alone, not full weights"):
        adaptable.run(adaptable.engine.update_weights(adaptable.version + 1, buckets, probe))
    assert compare(probe_of(adaptable.model), answers(adaptable)) <= 1e-4


def test_an_engine_without_lora_refuses_an_adapter(driver: Driver) -> None:
    driver.publish(driver.model)
    assert "the engine was started without engines.lora_rank" in refused(driver, make_adapter(1))
