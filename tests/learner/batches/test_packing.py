"""Packing keeps every token once, and budgets and balance hold."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.batches.batch import BatchTotals, Sample, TrainGroup
from learner.batches.packing import balance_ranks, pack, row_length, split_micro_batches, totals
from speech.records import PromptLayout
from tests.learner.batches.packed_cases import random_group


@st.composite
def groups(draw: st.DrawFn, least: int = 1) -> list[TrainGroup]:
    result = []
    for index in range(draw(st.integers(least, 6))):
        prompt = draw(st.integers(1, 9))
        responses = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
        audio = draw(st.integers(0, prompt))
        result.append(random_group(prompt, responses, seed=index, audio=index, audio_length=audio))
    return result


@given(groups(), st.booleans())
def test_every_token_is_packed_once_and_in_order(batch: list[TrainGroup], shared: bool) -> None:
    row = pack(batch, shared)
    samples = [sample for group in batch for sample in group.samples]
    assert row.targets.tolist() == [t for s in samples for t in s.token_ids]
    assert row.behaviour_logprobs.tolist() == pytest.approx([p for s in samples for p in s.behaviour_logprobs])
    assert row.advantages.tolist() == pytest.approx([s.advantage for s in samples])
    assert row.sample_lengths.tolist() == [len(s.token_ids) for s in samples]
    assert row.sample_of.tolist() == [i for i, s in enumerate(samples) for _ in s.token_ids]
    assert row.step_of.tolist() == [i for s in samples for i in range(len(s.token_ids))]
    assert len(row.input_ids) == len(row.position_ids) == sum(block.length for block in row.blocks)
    assert len(row.input_ids) == sum(row_length(group, shared) for group in batch)
    copies = [(g, g.samples) for g in batch] if shared else [(g, (s,)) for g in batch for s in g.samples]
    expected = [t for g, chosen in copies for t in (*g.layout.token_ids, *(t for s in chosen for t in s.token_ids))]
    assert row.input_ids.tolist() == expected
    assert row.audio == tuple(g.audio for g, _ in copies)


@given(groups(), st.booleans())
def test_blocks_positions_and_audio_fit_together(batch: list[TrainGroup], shared: bool) -> None:
    row = pack(batch, shared)
    position, target, audio = 0, 0, []
    by_audio = {group.audio: group.layout for group in batch}
    for block, index in zip(row.blocks, row.audio, strict=True):
        assert block.start == position
        layout = by_audio[index]
        audio += [block.start + i for i, is_token in enumerate(layout.is_token) if not is_token]
        assert row.position_ids[position : position + block.prompt].tolist() == list(range(block.prompt))
        position += block.prompt
        for length in block.responses:
            expected = list(range(block.prompt, block.prompt + length))
            assert row.position_ids[position : position + length].tolist() == expected
            # Each target is predicted one position earlier; the first one by the prompt's last position.
            chosen = row.predict_from[target : target + length].tolist()
            assert chosen == [block.start + block.prompt - 1, *range(position, position + length - 1)]
            assert (row.position_ids[chosen] + 1).tolist() == expected
            position, target = position + length, target + length
    assert row.audio_positions.tolist() == audio


def visited(value: Any) -> int:
    """Objects that FSDP2 looks at when a module is called with this: it walks through containers and dataclasses."""
    if isinstance(value, dict):
        return 1 + sum(map(visited, value.values()))
    if isinstance(value, list | tuple):
        return 1 + sum(map(visited, value))
    if dataclasses.is_dataclass(value):
        return 1 + sum(visited(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 1


def test_longer_samples_are_no_more_work_for_who_walks_through_a_batch() -> None:
    short, long = (pack([random_group(4, [length] * 3, seed=1)]) for length in (2, 200))
    assert visited(short) == visited(long)
    assert list(long.members)[1:] == list(long.members[1:]) and len(long.members) == 3


def test_groups_without_behaviour_logprobs_or_audio() -> None:
    group = TrainGroup(PromptLayout((1, 2), 0, 0), (Sample((3, 4), (), 1.0),), audio=7)
    row = pack([group])
    assert row.behaviour_logprobs.tolist() == [0.0, 0.0]
    assert row.audio_positions.dtype == torch.long and row.audio_positions.numel() == 0


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (TrainGroup(PromptLayout((), 0, 0), (Sample((1,), (), 0.0),), 0), "empty prompt"),
        (TrainGroup(PromptLayout((1,), 0, 0), (), 0), "no samples"),
        (TrainGroup(PromptLayout((1,), 0, 0), (Sample((), (), 0.0),), 0), "empty response"),
        (TrainGroup(PromptLayout((1,), 0, 0), (Sample((1, 2), (0.5,), 0.0),), 0), "2 tokens but 1 log-probs"),
    ],
)
def test_what_cannot_be_packed_is_named(group: TrainGroup, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack([random_group(2, [1]), group])
    with pytest.raises(ValueError, match="nothing"):
        pack([])


@given(groups(least=0), st.integers(1, 60), st.booleans())
def test_micro_batches_respect_the_budget(batch: list[TrainGroup], budget: int, shared: bool) -> None:
    parts = split_micro_batches(batch, budget, shared)
    for part in parts:
        assert part and (len(part) == 1 or sum(row_length(g, shared) for g in part) <= budget)
        assert [g.audio for g in part] == sorted(g.audio for g in part)
    assert sorted(g.audio for part in parts for g in part) == list(range(len(batch)))
    assert [part[0].audio for part in parts] == sorted(part[0].audio for part in parts)
    assert parts == split_micro_batches(list(batch), budget, shared)


@given(groups(least=0), st.integers(1, 5))
def test_ranks_are_balanced(batch: list[TrainGroup], ranks: int) -> None:
    shares = balance_ranks(batch, ranks)
    assert len(shares) == ranks
    assert Counter(g.audio for share in shares for g in share) == Counter(range(len(batch)))
    loads = [sum(g.packed_length for g in share) for share in shares]
    longest = max((g.packed_length for g in batch), default=0)
    # The greedy rule never leaves two ranks further apart than one group.
    assert max(loads) - min(loads) <= longest
    assert shares == balance_ranks(list(batch), ranks)


@given(groups(least=0), st.integers(1, 5))
def test_totals_do_not_depend_on_the_split(batch: list[TrainGroup], ranks: int) -> None:
    whole = totals(batch)
    parts = [totals(share) for share in balance_ranks(batch, ranks)]
    assert whole == BatchTotals(sum(p.tokens for p in parts), sum(p.samples for p in parts))
    if batch:
        row = pack(batch)
        assert whole == BatchTotals(len(row.targets), len(row.sample_lengths))


def test_nonsense_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="token_budget"):
        split_micro_batches([], 0)
    with pytest.raises(ValueError, match="ranks"):
        balance_ranks([], 0)
