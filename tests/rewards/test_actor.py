from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from rewards.actor import RewardPool
from rewards.compose import RewardComposition
from rewards.config import JudgeConfig, RewardConfig, RewardItem, SoundConfig
from speech.errors import UserError
from speech.records import Group
from tests.rewards.sound_fixtures import sound_group, tape_codec

pytestmark = pytest.mark.usefixtures("ray_session")
MakeGroup = Callable[..., Group]
USER = "tests.rewards.misbehaving_rewards:"


def config(name: str, **settings: Any) -> RewardConfig:
    options = settings.pop("options", {})
    return RewardConfig([RewardItem("accuracy"), RewardItem(USER + name, options=options)], **settings)


def test_results_keep_their_order_and_a_killed_actor_is_replaced(make_group: MakeGroup) -> None:
    groups = [make_group(f"word {i}", [f"word {i}", "other", "x" * i], name=f"u{i}") for i in range(20)]
    settings = config("length", workers=2)
    expected = [RewardComposition(settings).score(group) for group in groups]
    pool = RewardPool(settings)
    try:
        assert pool.score(groups) == expected
        assert pool.score([]) == []
        assert (pool.counts.scored, pool.counts.retried, pool.counts.invalid) == (60, 0, {})
        for actor in pool.actors():
            ray.kill(actor)
        assert pool.score(groups) == expected
        assert pool.counts.scored == 120 and pool.counts.retried > 0 and pool.counts.replaced >= 1
        assert not pool.counts.invalid
    finally:
        pool.close()


def test_a_hung_group_becomes_invalid_and_spoils_no_other(make_group: MakeGroup) -> None:
    groups = [make_group(text, ["abc", "d"], name=f"u{i}") for i, text in enumerate(["a", "hang", "b", "c", "d", "e"])]
    pool = RewardPool(config("hangs_on_hang", timeout_s=2.0))
    try:
        scored = pool.score(groups)
        assert [all(r.valid for r in group.rewards) for group in scored] == [True, False, True, True, True, True]
        assert all((r.invalid or "").startswith("reward time-out: no answer in 2 s") for r in scored[1].rewards)
        assert len(scored[1].rewards) == 2
        assert pool.counts.scored == 10 and sum(pool.counts.invalid.values()) == 2
        assert pool.counts.replaced == 2 and pool.counts.retried >= 1
    finally:
        pool.close()


def test_a_dead_actor_is_retried_on_another(make_group: MakeGroup, tmp_path: Path) -> None:
    groups = [make_group(text, ["abc"], name=text) for text in ("a", "die", "b")]
    pool = RewardPool(config("dies_once", options={"marker": str(tmp_path / "died")}))
    try:
        assert all(reward.valid for group in pool.score(groups) for reward in group.rewards)
        assert pool.counts.replaced == 1 and pool.counts.retried == 1
    finally:
        pool.close()


def test_a_typo_is_found_before_any_actor_starts() -> None:
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        RewardPool(RewardConfig([RewardItem("acuracy")]))
    with pytest.raises(UserError, match="workers is at least 1"):
        RewardPool(RewardConfig(workers=0))


def test_a_judge_that_hangs_costs_its_own_group_only() -> None:
    import tests.rewards.misbehaving_rewards  # noqa: F401  (registers the judge here too)

    rewards = RewardConfig(
        [RewardItem(USER + "length"), RewardItem("tts_accuracy")],
        sound=SoundConfig(judge=JudgeConfig("hanging", "nowhere")),
        timeout_s=3.0,
    )
    pool = RewardPool(rewards, partial(tape_codec, 1))
    groups = [sound_group([range(count)] * 2, text="word", name=str(count)) for count in (20, 40, 10)]
    try:
        scored = pool.score(groups)
        assert [all(r.valid for r in group.rewards) for group in scored] == [True, False, True]
        assert [r.parts["tts_accuracy"] for r in scored[0].rewards] == [1.0, 1.0]
        assert all("time-out" in (r.invalid or "") and r.total is None for r in scored[1].rewards)
    finally:
        pool.close()
