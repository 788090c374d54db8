"""From groups to packed rows, micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from learner.batches.batch import BatchTotals, Block, PackedBatch, Sample, SampleRefs, TrainGroup
from learner.batches.filters import chosen_labels


def row_length(group: TrainGroup, shared_prefix: bool = True) -> int:
    """Positions that a group takes in a packed row: P + Σ R when shared, Σ (P + R) in plain form."""
    return group.packed_length + (0 if shared_prefix else (len(group.samples) - 1) * len(group.layout.token_ids))


def pack(groups: Sequence[TrainGroup], shared_prefix: bool = True) -> PackedBatch:
    """Lay groups out in one row without padding, on the CPU.

    Args:
        groups: at least one, each with at least one sample and one prompt position.
        shared_prefix: one block per group, whose responses all attend to a single copy of the prompt; otherwise
            one block per sample, each with its own copy of prompt and audio. Both forms hold the same targets in
            the same order and differ in cost only.

    Returns:
        The row; see `PackedBatch` for its fields and shapes.

    Raises:
        ValueError: nothing to pack, an empty prompt, a group without samples, an empty response, or a sample whose
            log-probs or token credit do not match its tokens.
    """
    if not groups:
        raise ValueError("there is nothing to pack")
    rows: list[tuple[TrainGroup, tuple[int, ...]]] = []
    for index, group in enumerate(groups):
        _check(group, index)
        places = tuple(range(len(group.samples)))
        rows += [(group, places)] if shared_prefix else [(group, (place,)) for place in places]

    input_ids: list[int] = []
    position_ids: list[int] = []
    audio_positions: list[int] = []
    blocks: list[Block] = []
    predict_from: list[int] = []
    targets: list[int] = []
    sample_of: list[int] = []
    step_of: list[int] = []
    samples: list[Sample] = []
    for group, places in rows:
        responses = [group.samples[place] for place in places]
        layout, start, prompt = group.layout, len(input_ids), len(group.layout.token_ids)
        blocks.append(Block(start, prompt, tuple(len(sample.token_ids) for sample in responses)))
        first_audio = start + layout.audio_start
        audio_positions += range(first_audio, first_audio + layout.audio_length)
        input_ids += layout.token_ids
        position_ids += range(prompt)
        for sample in responses:
            length, offset = len(sample.token_ids), len(input_ids)
            # The prompt's last position predicts the first token of every response.
            predict_from += [start + prompt - 1, *range(offset, offset + length - 1)]
            targets += sample.token_ids
            sample_of += [len(samples)] * length
            step_of += range(length)
            input_ids += sample.token_ids
            position_ids += range(prompt, prompt + length)
            samples.append(sample)
    return PackedBatch(
        input_ids=torch.tensor(input_ids),
        position_ids=torch.tensor(position_ids),
        audio_positions=torch.tensor(audio_positions, dtype=torch.long),
        audio=tuple(group.audio for group, _ in rows),
        heard=tuple(group.audio for group, _ in rows if group.layout.audio_length),
        blocks=tuple(blocks),
        predict_from=torch.tensor(predict_from),
        targets=torch.tensor(targets),
        sample_of=torch.tensor(sample_of),
        step_of=torch.tensor(step_of),
        sample_lengths=torch.tensor([len(sample.token_ids) for sample in samples]),
        behaviour_logprobs=torch.tensor(
            [p for s in samples for p in (s.behaviour_logprobs or (0.0,) * len(s.token_ids))], dtype=torch.float32
        ),
        advantages=torch.tensor([sample.advantage for sample in samples], dtype=torch.float32),
        members=SampleRefs((group, place) for group, places in rows for place in places),
        token_credit=torch.tensor(
            [c for s in samples for c in (s.token_credit or (0.0,) * len(s.token_ids))], dtype=torch.float32
        )
        if any(sample.token_credit for sample in samples)
        else None,
    )


def _check(group: TrainGroup, index: int) -> None:
    if not group.layout.token_ids:
        raise ValueError(f"group {index} has an empty prompt: nothing predicts its first response token")
    if not group.samples:
        raise ValueError(f"group {index} has no samples")
    for number, sample in enumerate(group.samples):
        if not sample.token_ids:
            raise ValueError(f"group {index}, sample {number}: empty response (a stop token at least is expected)")
        if sample.behaviour_logprobs and len(sample.behaviour_logprobs) != len(sample.token_ids):
            raise ValueError(
                f"group {index}, sample {number}: {len(sample.token_ids)} tokens but "
                f"{len(sample.behaviour_logprobs)} log-probs"
            )
        if sample.token_credit and len(sample.token_credit) != len(sample.token_ids):
            raise ValueError(
                f"group {index}, sample {number}: {len(sample.token_ids)} tokens but "
                f"{len(sample.token_credit)} token credits"
            )


def split_micro_batches(
    groups: Sequence[TrainGroup], token_budget: int, shared_prefix: bool = True
) -> list[list[TrainGroup]]:
    """Cut a rank's groups into micro-batches of at most `token_budget` positions (first-fit decreasing).

    A group is never split, so one that is longer than the budget is a micro-batch of its own. The result depends on
    the order and the lengths only; groups keep their order inside a micro-batch, and micro-batches are ordered by
    their first group.

    Raises:
        ValueError: `token_budget` < 1.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    lengths = [row_length(group, shared_prefix) for group in groups]
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(groups)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, free in enumerate(room) if lengths[index] <= free), None)
        if place is None:
            bins.append([index])
            room.append(token_budget - lengths[index])
        else:
            bins[place].append(index)
            room[place] -= lengths[index]
    return [[groups[i] for i in chosen] for chosen in sorted(sorted(b) for b in bins)]


def balance_ranks(groups: Sequence[TrainGroup], ranks: int) -> list[list[TrainGroup]]:
    """Deal groups out to ranks so that their positions are about equal (longest first, to the lightest rank).

    Ties go to the lower index and the lower rank, so that every process computes the same answer. With fewer groups
    than ranks some lists are empty. Groups keep their order inside a rank.

    Raises:
        ValueError: `ranks` < 1.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, not {ranks}")
    chosen: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    lengths = [group.packed_length for group in groups]
    for index in sorted(range(len(groups)), key=lambda i: (-lengths[i], i)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        chosen[rank].append(index)
        load[rank] += lengths[index]
    return [[groups[i] for i in sorted(indices)] for indices in chosen]


def totals(groups: Sequence[TrainGroup], sample_filter: str | None = None, labels_per_token: int = 1) -> BatchTotals:
    """Counts of a whole batch, taken before it is dealt out to ranks and micro-batches.

    Args:
        sample_filter: DiffRO's, which decides what counts as chosen; None without DiffRO.
        labels_per_token: of DiffRO's reward model, which decides what text fits into its speech.
    """
    labels = [] if sample_filter is None else chosen_labels(groups, sample_filter, labels_per_token)
    return BatchTotals(
        tokens=sum(group.response_tokens for group in groups),
        samples=sum(len(group.samples) for group in groups),
        chosen_samples=len(labels),
        chosen_labels=sum(labels),
    )
