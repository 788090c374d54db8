"""What the pool of reward actors adds to `ActorPool`, with real reward actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.actors.rewards import RewardPool
from rewards.compose import RewardComposition
from rewards.config import JudgeConfig, RewardConfig, RewardItem, SoundConfig
from rewards.pipeline import CodecFactory
from speech.errors import UserError
from speech.records import Group
from tests.rewards.listening.sound_fixtures import sound_config, sound_group, tape_codec
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("ray_session")
MakeGroup = Callable[..., Group]
MakePool = Callable[..., RewardPool]
USER = "tests.rewards.misbehaving_rewards:"


def config(name: str, **settings: Any) -> RewardConfig:
    options = settings.pop("options", {})
    return RewardConfig([RewardItem("accuracy"), RewardItem(USER + name, options=options)], **settings)


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    made: list[RewardPool] = []

    def build(rewards: RewardConfig, codec: CodecFactory | None = None) -> RewardPool:
        made.append(RewardPool(rewards, codec))
        return made[-1]

    yield build
    for pool in made:
        pool.close()


def test_results_are_those_of_the_composition_and_every_group_is_scored_once(
    make_pool: MakePool, make_group: MakeGroup, tmp_path: Path
) -> None:
    groups = [make_group(f"word {i}", [f"word {i}", "other", "x" * i], name=f"u{i}") for i in range(20)]
    settings = config("notes", options={"file": str(tmp_path / "notes")}, count=2)
    expected = [RewardComposition(settings).score(group) for group in groups]
    (tmp_path / "notes").unlink()
    pool = make_pool(settings)
    assert pool.score(groups) == expected
    assert sorted((tmp_path / "notes").read_text().split()) == sorted(group.prompt.id for group in groups)
    assert pool.score([]) == []
    assert (pool.counts.scored, pool.retried, pool.counts.invalid) == (60, 0, {})
    assert sum(len(spans) for spans in pool.spans().values()) == 7, "calls of three groups, for two actors"


def test_shares_from_several_threads_are_a_call_each_and_use_all_actors(
    make_pool: MakePool, make_group: MakeGroup, tmp_path: Path
) -> None:
    groups = [make_group(f"word {i}", [f"word {i}", "other"], name=f"u{i}") for i in range(20)]
    pool = make_pool(config("notes", options={"file": str(tmp_path / "notes")}, count=2))
    expected = pool.score(groups)
    until(lambda: pool.serving() == 2)
    pool.spans()
    shares = pool.shares(len(groups))
    assert [place for share in shares for place in share] == list(range(20))
    with ThreadPoolExecutor(4) as threads:  # more than actors: they wait for one without work
        scored = list(threads.map(lambda share: pool.score([groups[i] for i in share], together=True), shares))
    assert [group for part in scored for group in part] == expected
    spans = pool.spans()
    assert sum(map(len, spans.values())) == len(shares) and all(spans.values())


def test_a_hung_group_becomes_invalid_and_spoils_no_other(make_pool: MakePool, make_group: MakeGroup) -> None:
    groups = [make_group(text, ["abc", "d"], name=f"u{i}") for i, text in enumerate(["a", "hang", "b", "c", "d", "e"])]
    pool = make_pool(config("hangs_on_hang", timeout_s=2.0))
    scored = pool.score(groups)
    assert [all(r.valid for r in group.rewards) for group in scored] == [True, False, True, True, True, True]
    assert [r.invalid for r in scored[1].rewards] == ["reward time-out: no answer in 2 s (attempt 2)"] * 2
    assert pool.counts.scored == 10 and pool.counts.invalid == {"reward time-out: no answer in 2 s (attempt 2)": 2}
    assert pool.replaced == 2 and pool.retried >= 1
    assert pool.lethal == {"u1": "reward time-out: no answer in 2 s"}, "the second actor was its alone"


def test_a_dead_actor_is_retried_and_without_retries_its_groups_are_invalid(
    make_pool: MakePool, make_group: MakeGroup, tmp_path: Path
) -> None:
    groups = [make_group(text, ["abc"], name=text) for text in ("a", "die", "b")]
    for retries, marker in ((1, "first"), (0, "second")):
        pool = make_pool(config("dies_once", options={"marker": str(tmp_path / marker)}, retries=retries))
        scored = pool.score(groups)
        assert [group.rewards[0].valid for group in scored] == [True, bool(retries), True]
        assert (pool.replaced, pool.retried) == (1, retries)
        assert pool.lethal == {}, "one death is nobody's fault"
    assert str(scored[1].rewards[0].invalid).startswith("reward actor: died: ")
    assert pool.counts.invalid == {"reward actor: died": 1}


def test_a_typo_is_found_before_any_actor_starts(make_pool: MakePool) -> None:
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        make_pool(RewardConfig([RewardItem("acuracy")]))
    with pytest.raises(UserError, match="count is at least 1"):
        make_pool(RewardConfig(count=0))


def test_rewards_on_sound_are_refused_in_a_run_without_it(make_pool: MakePool) -> None:
    with pytest.raises(UserError, match="token_loops score sound, and this run has no speech tokens"):
        make_pool(sound_config("no_stop", "token_loops"))
    with pytest.raises(UserError, match=r"rewards\.sound\.judge\.kind is empty"):
        make_pool(sound_config("tts_accuracy"), partial(tape_codec, 1))


def test_a_judge_that_hangs_costs_its_own_group_only(make_pool: MakePool) -> None:
    rewards = RewardConfig(
        [RewardItem(USER + "length"), RewardItem("tts_accuracy")],
        sound=SoundConfig(judge=JudgeConfig(f"{USER}HangingJudge", "nowhere")),
        timeout_s=3.0,
    )
    pool = make_pool(rewards, partial(tape_codec, 1))
    groups = [sound_group([range(count)] * 2, text="word", name=str(count)) for count in (20, 40, 10)]
    scored = pool.score(groups)
    assert [all(r.valid for r in group.rewards) for group in scored] == [True, False, True]
    assert [r.parts["tts_accuracy"] for r in scored[0].rewards] == [1.0, 1.0]
    assert all("time-out" in (r.invalid or "") and r.total is None for r in scored[1].rewards)
    assert pool.counts.seconds["judge"] > 0
