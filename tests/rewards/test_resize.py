"""A pool of reward actors that changes its size again and again while it scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewards.config import RewardConfig, RewardItem
from rewards.pool.pool import RewardPool
from speech.records import Group
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("ray_session")


def test_resizing_during_a_call_loses_no_group_and_scores_none_twice(
    make_group: Callable[..., Group], tmp_path: Path
) -> None:
    """The size is set by the thread that trains, while another one scores the next window."""
    notes = tmp_path / "notes"
    notes.touch()
    reward = RewardItem("tests.rewards.misbehaving_rewards:notes", options={"file": str(notes), "seconds": 0.2})
    groups = [make_group(f"word {i}", ["abc"] * (1 + i % 4), name=f"u{i}") for i in range(60)]
    pool = RewardPool(RewardConfig([RewardItem("accuracy"), reward]))

    def noted() -> list[str]:
        return notes.read_text().split()

    try:
        with ThreadPoolExecutor(1) as thread:
            scoring = thread.submit(pool.score, groups)
            for number, size in enumerate((3, 1, 2, 3, 1), 1):
                until(lambda done=8 * number: len(noted()) >= done or scoring.done())  # type: ignore[misc]
                pool.resize(size)
            scored = scoring.result(300)
        assert [group.prompt for group in scored] == [group.prompt for group in groups], "in order"
        assert all(reward.valid for group in scored for reward in group.rewards)
        assert Counter(noted()) == Counter(group.prompt.id for group in groups), "each one once"
        assert pool.counts.scored == sum(len(group.trajectories) for group in groups)
        assert pool.counts.retried == pool.replaced == 0 and not pool.counts.invalid
        assert [group.rewards for group in pool.score(groups[:5])] == [group.rewards for group in scored[:5]]
        until(lambda: pool.serving() == 1)
    finally:
        pool.close()
