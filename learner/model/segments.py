"""The attention of `attention.py` in two kernel calls a layer, whatever the number of groups: for CUDA, in half
precision.

In the first call each prompt and each response is a segment of its own, causal in itself. In the second the responses
of a group, as one segment, attend to the prompt of their group, without a mask. A response row thus has two softmaxes,
each over a part of its keys, and their log-sum-exps join them. In the backward pass each call gets the joined output
and log-sum-exp, with which FlashAttention's gradient of a part is that part of the whole gradient (as in ring
attention, 2310.01889).

Nothing is padded or copied for each response, unlike in the form for CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch

from learner.batches.batch import Block


@dataclass(frozen=True, slots=True)
class Segments:
    """Consecutive rows of a tensor that belong together.

    Attributes:
        ends: int32 (segments + 1,), where each begins and the last ends.
        longest: rows of the longest.
    """

    ends: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Segments:
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(ends, max(lengths, default=0))


class FlashKernels:
    """FlashAttention as torch brings it along: rows of queries attend to rows of keys, one pair of segments after
    another. Shapes: (rows, heads, head_dim)."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        asking: Segments,
        asked: Segments,
        causal: bool,
        scale: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output, and the log-sum-exp of scores, float32 (heads, rows)."""
        places = asking.ends, asked.ends, asking.longest, asked.longest
        found = torch.ops.aten._flash_attention_forward(query, key, value, *places, 0.0, causal, False, scale=scale)
        return found[0], found[1]

    def backward(
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        normaliser: torch.Tensor,
        asking: Segments,
        asked: Segments,
        causal: bool,
        scale: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of queries, keys and values, given output and log-sum-exp of the whole softmax."""
        places = asking.ends, asked.ends, asking.longest, asked.longest
        # Of dropout, which there is none of.
        seed = torch.zeros(2, dtype=torch.uint64, device=query.device)
        unused = torch.empty(0, device=query.device)
        inputs = gradient, query, key, value, output, normaliser
        gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten._flash_attention_backward(
            *inputs, *places, 0.0, causal, seed, unused, scale=scale
        )
        return gradients


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the segments of a packed row are.

    Attributes:
        own: all prompts and responses. A response without siblings is one segment with its prompt.
        responses: rows of the responses that share a prompt, and `prompts` the rows of these prompts.
        asking, asked: by group, in the rows that these two pick out.
    """

    own: Segments
    responses: torch.Tensor
    prompts: torch.Tensor
    asking: Segments
    asked: Segments


# Every layer of the policy and of the reference asks for the same few plans; they are built once per micro-batch.
@lru_cache(maxsize=4)
def plan(blocks: tuple[Block, ...], device: torch.device) -> Plan:
    """The plan of a row with these blocks."""
    shared = [block for block in blocks if len(block.responses) > 1]
    lengths: list[int] = []
    for block in blocks:
        lengths += [block.prompt, *block.responses] if len(block.responses) > 1 else [block.length]
    prompts = [row for block in shared for row in range(block.start, block.start + block.prompt)]
    responses = [row for block in shared for row in range(block.start + block.prompt, block.start + block.length)]
    return Plan(
        own=Segments.of(lengths, device),
        responses=torch.tensor(responses, dtype=torch.long, device=device),
        prompts=torch.tensor(prompts, dtype=torch.long, device=device),
        asking=Segments.of([block.length - block.prompt for block in shared], device),
        asked=Segments.of([block.prompt for block in shared], device),
    )


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Plan, scale: float | None, kernels: FlashKernels
) -> torch.Tensor:
    """Attention of a packed row.

    Args:
        query: (N, heads, head_dim).
        key, value: (N, key_value_heads, head_dim).

    Returns:
        (N, heads, head_dim).
    """
    output: torch.Tensor = _Attention.apply(query, key, value, plan, scale, kernels)
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: Plan,
        scale: float | None,
        kernels: FlashKernels,
    ) -> torch.Tensor:
        output, normaliser = kernels.forward(query, key, value, plan.own, plan.own, True, scale)
        rows, prompts = plan.responses, plan.prompts
        if len(rows):
            of_prompt = query[rows], key[prompts], value[prompts]
            other, its_normaliser = kernels.forward(*of_prompt, plan.asking, plan.asked, False, scale)
            own = normaliser[:, rows]
            whole = torch.logaddexp(own, its_normaliser)
            shares = ((part - whole).exp().T[..., None] for part in (own, its_normaliser))
            joined = sum(share * part for share, part in zip(shares, (output[rows], other), strict=True))
            output = output.index_copy(0, rows, joined.to(output.dtype))
            normaliser = normaliser.index_copy(1, rows, whole)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.plan, ctx.scale, ctx.kernels = plan, scale, kernels
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        plan, scale, kernels = ctx.plan, ctx.scale, ctx.kernels
        inputs = gradient, query, key, value, output, normaliser
        of_query, of_key, of_value = kernels.backward(*inputs, plan.own, plan.own, True, scale)
        rows, prompts = plan.responses, plan.prompts
        if len(rows):
            parts = gradient[rows], query[rows], key[prompts], value[prompts], output[rows], normaliser[:, rows]
            more = kernels.backward(*parts, plan.asking, plan.asked, False, scale)
            places = (rows, prompts, prompts)
            for whole, place, part in zip((of_query, of_key, of_value), places, more, strict=True):
                whole.index_add_(0, place, part)
        return of_query, of_key, of_value, None, None, None
