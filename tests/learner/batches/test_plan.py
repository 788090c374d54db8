"""Every group reaches exactly one rank of one update, and totals count all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.batches.batch import Sample, TrainGroup
from learner.batches.plan import audio_of, plan_updates
from speech.records import PromptLayout


def group(index: int, lengths: list[int]) -> TrainGroup:
    samples = tuple(Sample((7,) * n, (-1.0,) * n, 1.0) for n in lengths)
    return TrainGroup(PromptLayout((3, 2, 4), 1, 1), samples, index)


def test_ranks_are_weighed_and_the_dummy_chosen_by_packed_positions() -> None:
    """A prompt counts once for all samples of its group: 3 + 8 positions against 3 + 10."""
    many, long = group(0, [1] * 8), group(1, [10])
    plan = plan_updates([many, long, group(2, [4])], [], 1, 2)
    assert [[g.audio for g in part.groups] for [part] in plan] == [[1], [0, 2]]
    assert plan_updates([many, long], [], 1, 1)[0][0].dummy == many


batches = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=12)


@given(batches, batches, st.integers(1, 4), st.integers(1, 4))
def test_plan_deals_out_everything_once(policy: list, replay: list, updates: int, ranks: int) -> None:
    groups = [group(i, lengths) for i, lengths in enumerate(policy)]
    extra = [group(100 + i, lengths) for i, lengths in enumerate(replay)]
    shares = plan_updates(groups, extra, updates, ranks)
    assert len(shares) == ranks
    assert len({len(of_rank) for of_rank in shares}) == 1, "collectives need every rank in every update"
    for name, expected in (("groups", groups), ("replay", extra)):
        dealt = [g for of_rank in shares for share in of_rank for g in getattr(share, name)]
        assert sorted(g.audio for g in dealt) == [g.audio for g in expected]
    for update in zip(*shares, strict=True):
        members = [g for share in update for g in share.groups]
        assert all(share.totals.tokens == sum(g.response_tokens for g in members) for share in update)
        assert all(share.totals.samples == sum(len(g.samples) for g in members) for share in update)
    for of_rank in shares:
        needed = {g.audio for share in of_rank for g in (*share.groups, *share.replay, share.dummy)}
        assert set(audio_of(of_rank)) == needed


def test_prompts_without_audio_need_none() -> None:
    silent = TrainGroup(PromptLayout((3, 4), 0, 0), (Sample((7,), (-1.0,), 1.0),), 5)
    assert audio_of(plan_updates([silent], [group(6, [1])], 1, 1)[0]) == [6]
