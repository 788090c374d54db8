from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Any

import psutil
import pytest

from speech.errors import UserError
from speech.records import Group
from tests.rollout.engine_driver import Driver
from tests.rollout.tiny_lm import OWN_EOS, SAMPLING, STOP_IDS, make_prompts


def drawn(groups: list[Group]) -> list[tuple[Any, ...]]:
    return [(t.prompt_id, t.index, t.token_ids, t.logprobs, t.seed) for group in groups for t in group.trajectories]


def reset(driver: Driver) -> None:
    assert driver.run(driver.engine._live().reset_prefix_cache())


def test_logprobs_equal_transformers_inputs_embeds(driver: Driver) -> None:
    assert driver.gap(SAMPLING) <= 1e-4


def test_logprobs_with_stop_tokens_masked_at_first(driver: Driver) -> None:
    sampling = replace(SAMPLING, min_new_tokens=8)
    assert driver.gap(sampling) <= 1e-4
    groups = driver.run(driver.engine.generate(*make_prompts(8), sampling))
    assert not any(set(t.token_ids[:8]) & set(STOP_IDS) for g in groups for t in g.trajectories)


def test_exactly_the_stop_tokens_of_the_family_end_a_response(driver: Driver) -> None:
    sampling = replace(SAMPLING, temperature=1.6, group_size=16, max_new_tokens=120)
    groups = driver.run(driver.engine.generate(*make_prompts(8), sampling))
    samples = [t for group in groups for t in group.trajectories]
    assert {t.finish_reason for t in samples} == {"stop", "length"}
    for t in samples:
        assert (t.token_ids[-1] in STOP_IDS) == (t.finish_reason == "stop")
        assert not set(t.token_ids[:-1]) & set(STOP_IDS)
        assert len(t.logprobs) == len(t.token_ids)
    # The checkpoint's own end token is an ordinary token here.
    assert any(OWN_EOS in t.token_ids[:-1] for t in samples)


def test_two_generations_are_identical_bit_for_bit(driver: Driver) -> None:
    prompts, audio = make_prompts(6)
    reseeded = [replace(prompt, seed=prompt.seed + 500) for prompt in prompts]
    results = []
    for batch in (prompts, reseeded, prompts):
        reset(driver)
        results.append(drawn(driver.run(driver.engine.generate(batch, audio, SAMPLING))))
    first, other, again = results
    assert len(first) == 24
    assert first == again
    assert [row[2] for row in first] != [row[2] for row in other]


def test_results_do_not_depend_on_when_requests_arrive(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, audio = make_prompts(8)
    reset(driver)
    expected = driver.run(driver.engine.generate(prompts, audio, SAMPLING))
    reset(driver)
    client = driver.engine._live().engine_core
    send = client.add_request_async

    async def late(request: Any) -> None:
        await asyncio.sleep(random.random() * 0.05)
        await send(request)

    monkeypatch.setattr(client, "add_request_async", late)
    assert drawn(driver.run(driver.engine.generate(prompts, audio, SAMPLING))) == drawn(expected)


def test_samples_of_a_group_have_their_own_seeds_and_differ(driver: Driver) -> None:
    prompts, audio = make_prompts(1)
    (group,) = driver.run(driver.engine.generate(prompts, audio, SAMPLING))
    assert [t.index for t in group.trajectories] == [0, 1, 2, 3]
    assert [t.seed for t in group.trajectories] == [prompts[0].seed + i for i in range(4)]
    assert len({t.token_ids for t in group.trajectories}) == 4


def test_a_group_pays_for_its_prompt_once(driver: Driver) -> None:
    reset(driver)
    before = driver.engine.stats()
    groups = driver.run(driver.engine.generate(*make_prompts(4), SAMPLING))
    after = driver.engine.stats()
    rate = (after.prefix_hits - before.prefix_hits) / (after.prefix_queries - before.prefix_queries)
    assert rate > 0.5
    assert after.prompts - before.prompts == 4
    assert after.trajectories - before.trajectories == 16
    assert after.tokens - before.tokens == sum(len(t.token_ids) for g in groups for t in g.trajectories)


def test_greedy_takes_one_sample_and_the_most_likely_token(driver: Driver) -> None:
    prompts, audio = make_prompts(3)
    greedy = driver.run(driver.engine.generate(prompts, audio, SAMPLING.greedy()))
    other_seed = driver.run(
        driver.engine.generate([replace(p, seed=p.seed + 1) for p in prompts], audio, SAMPLING.greedy())
    )
    assert [len(group.trajectories) for group in greedy] == [1, 1, 1]
    assert [g.trajectories[0].token_ids for g in greedy] == [g.trajectories[0].token_ids for g in other_seed]
    assert driver.gap(SAMPLING.greedy()) <= 1e-4


def test_versions_text_and_layout_are_filled(driver: Driver) -> None:
    prompts, audio = make_prompts(2)
    groups = driver.run(driver.engine.generate(prompts, audio, SAMPLING))
    for prompt, item, group in zip(prompts, audio, groups, strict=True):
        assert (group.prompt, group.layout, group.seconds, group.peak) == (prompt, item.layout, item.seconds, item.peak)
        for t in group.trajectories:
            assert (t.version_first, t.version_last) == (driver.version, driver.version)
            assert t.text == " ".join(str(i) for i in t.token_ids if i not in STOP_IDS)


def test_a_prompt_without_room_for_its_response_is_refused_by_name(driver: Driver) -> None:
    prompts, audio = make_prompts(1, positions=230)
    with pytest.raises(UserError, match=r"prompt 0/u0 \(18.4 s of audio\): 234 positions .*max_model_len=256$"):
        driver.run(driver.engine.generate(prompts, audio, SAMPLING))


def test_health_answers(driver: Driver) -> None:
    health = driver.run(driver.engine.health())
    assert (health.version, health.stale, health.unfinished) == (driver.version, None, 0)


def test_an_engine_that_waits_leaves_the_cores_to_others(driver: Driver) -> None:
    driver.run(driver.engine.generate(*make_prompts(1), SAMPLING))
    processes = psutil.Process().children(recursive=True)
    assert any("VLLM" in process.name() for process in processes)

    def used_s() -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in processes))

    before = used_s()
    time.sleep(0.9)  # within the second for which vLLM's own readers poll
    assert used_s() - before < 0.3
