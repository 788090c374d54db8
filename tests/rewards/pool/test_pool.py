from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from rewards.compose import RewardComposition
from rewards.config import JudgeConfig, RewardConfig, RewardItem, SoundConfig
from rewards.pool import actor as workers
from rewards.pool.pool import RewardPool
from speech.errors import UserError
from speech.records import Group
from tests.rewards.listening.sound_fixtures import sound_group, tape_codec
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("ray_session")
MakeGroup = Callable[..., Group]
USER = "tests.rewards.misbehaving_rewards:"


def config(name: str, **settings: Any) -> RewardConfig:
    options = settings.pop("options", {})
    return RewardConfig([RewardItem("accuracy"), RewardItem(USER + name, options=options)], **settings)


def is_dead(actor: ray.actor.ActorHandle) -> bool:
    try:
        ray.get(actor.__ray_ready__.remote())
    except ray.exceptions.RayActorError:
        return True
    return False


def test_results_keep_their_order_and_a_killed_actor_is_replaced(make_group: MakeGroup) -> None:
    groups = [make_group(f"word {i}", [f"word {i}", "other", "x" * i], name=f"u{i}") for i in range(20)]
    settings = config("length", count=2)
    expected = [RewardComposition(settings).score(group) for group in groups]
    pool = RewardPool(settings)
    try:
        assert pool.score(groups) == expected
        assert pool.score([]) == []
        assert (pool.counts.scored, pool.counts.retried, pool.counts.invalid) == (60, 0, {})
        for actor in pool.actors():
            ray.kill(actor)
            until(partial(is_dead, actor))  # a kill takes effect later, and this little work is soon done
        assert pool.score(groups) == expected
        assert pool.counts.scored == 120 and pool.counts.retried > 0 and pool.replaced >= 1
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
        assert pool.replaced == 2 and pool.counts.retried >= 1
    finally:
        pool.close()


def test_a_dead_actor_is_retried_on_another(make_group: MakeGroup, tmp_path: Path) -> None:
    groups = [make_group(text, ["abc"], name=text) for text in ("a", "die", "b")]
    pool = RewardPool(config("dies_once", options={"marker": str(tmp_path / "died")}))
    try:
        assert all(reward.valid for group in pool.score(groups) for reward in group.rewards)
        assert pool.replaced == 1 and pool.counts.retried == 1
    finally:
        pool.close()


def test_a_typo_is_found_before_any_actor_starts() -> None:
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        RewardPool(RewardConfig([RewardItem("acuracy")]))
    with pytest.raises(UserError, match="count is at least 1"):
        RewardPool(RewardConfig(count=0))


def test_a_judge_that_hangs_costs_its_own_group_only() -> None:
    rewards = RewardConfig(
        [RewardItem(USER + "length"), RewardItem("tts_accuracy")],
        sound=SoundConfig(judge=JudgeConfig(f"{USER}HangingJudge", "nowhere")),
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


def test_a_pool_is_resized_while_it_scores_and_every_group_is_scored_once(
    make_group: MakeGroup, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    groups = [make_group(f"word {i}", ["abc"] * (i + 1), name=f"u{i}") for i in range(24)]
    pool = RewardPool(config("notes", options={"file": str(notes), "seconds": 0.1}))

    def score() -> None:
        notes.unlink(missing_ok=True)
        scored = pool.score(groups)
        assert [group.prompt for group in scored] == [group.prompt for group in groups]
        assert all(reward.valid for group in scored for reward in group.rewards)
        assert sorted(notes.read_text().split()) == sorted(group.prompt.id for group in groups)

    try:
        pool.score(groups[:1])
        pool.resize(3)
        score()  # by whoever is there
        until(lambda: pool.serving() == 3)
        pool.spans()
        thread = threading.Thread(target=score)
        notes.unlink()
        thread.start()
        until(notes.exists)
        pool.resize(1)
        thread.join()
        assert pool.serving() == len(pool.actors()) == 1 and pool.replaced == pool.counts.retried == 0
        spans = pool.spans()
        assert sorted(spans) == ["rewards 0", "rewards 1", "rewards 2"] and all(spans.values()), "all three had work"
        assert sorted(pool.spans()) == ["rewards 0"]
        score()
    finally:
        pool.close()


def test_an_actor_without_a_place_is_done_without(make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = RewardPool(config("length"))
    groups = [make_group("word", ["abc"])]
    try:
        pool.score(groups)
        monkeypatch.setattr(workers, "START_S", 0.2)
        monkeypatch.setattr(workers, "_RemoteActor", workers._RemoteActor.options(num_cpus=1000))
        pool.resize(2)
        assert (pool.wanted, pool.serving(), len(pool.actors())) == (2, 1, 2)
        time.sleep(0.3)
        assert pool.score(groups)[0].rewards[0].valid
        assert (pool.wanted, pool.serving(), len(pool.actors())) == (1, 1, 1)
    finally:
        pool.close()


def test_an_actor_leaves_a_node_that_is_about_to_go(make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "NODES_S", 0.0)
    announced: list[set[str]] = []
    pool = RewardPool(config("length"), draining_nodes=lambda: announced.pop() if announced else set())
    groups = [make_group(f"word {i}", ["abc"], name=f"u{i}") for i in range(8)]
    try:
        until(lambda: pool.serving() == 1)
        before = pool.actors()
        announced.append({ray.get_runtime_context().get_node_id()})
        assert all(group.rewards[0].valid for group in pool.score(groups))
        assert pool.replaced == 1 and pool.counts.retried == 0
        assert not {actor._actor_id for actor in before} & {actor._actor_id for actor in pool.actors()}
    finally:
        pool.close()
