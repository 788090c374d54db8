"""Attention over packed rows, in which the responses of a group share one copy of their prompt.

`register()` makes `attn_implementation="shared_prefix"` known to transformers. Any decoder-only model that hands its
keyword arguments down to the attention interface (Qwen2, Qwen3, Llama, …) then takes `blocks=` in its forward:

    model(inputs_embeds=row[None], position_ids=positions[None], blocks=batch.blocks, use_cache=False)

One forward pass serves prompt and responses, so FSDP2's hooks and activation checkpointing see an ordinary layer.
No mask over the whole row is built: transformers skips it for an attention without a registered mask function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from learner.batches.batch import Block

NAME = "shared_prefix"

# What some models ask of their attention and this one does not do. Ignoring it would be silently wrong.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")


def register() -> None:
    """Make the attention known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(NAME, shared_prefix_attention)


@dataclass(frozen=True, slots=True)
class _Fold:
    """How the G responses of a block become a batch (G, longest), and back.

    Attributes:
        pad: (G · longest,) response row that fills each place; shorter responses repeat their last row.
        unpad: (Σ R,) place of each response row.
        mask: (longest, prompt + longest) True where attention is allowed, the same for every response: padding comes
            after a response, where causality hides it.
    """

    pad: torch.Tensor
    unpad: torch.Tensor
    mask: torch.Tensor


# Every layer of the policy and of the reference asks for the same few plans; they are built once per micro-batch.
@lru_cache(maxsize=4)
def _plan(blocks: tuple[Block, ...], device: torch.device) -> tuple[_Fold | None, ...]:
    return tuple(_fold(block, device) if len(block.responses) > 1 else None for block in blocks)


def forget_plans() -> None:
    """Let go of plans, which hold memory on their device."""
    _plan.cache_clear()


def _fold(block: Block, device: torch.device) -> _Fold:
    longest = max(block.responses)
    starts = [0, *accumulate(block.responses)][:-1]
    pad = [s + min(i, n - 1) for s, n in zip(starts, block.responses, strict=True) for i in range(longest)]
    unpad = [g * longest + i for g, n in enumerate(block.responses) for i in range(n)]
    mask = torch.ones(longest, block.prompt + longest, dtype=torch.bool, device=device).tril(block.prompt)
    return _Fold(torch.tensor(pad, device=device), torch.tensor(unpad, device=device), mask)


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    blocks: tuple[Block, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Exact attention of a packed row: causal in each prompt, and from each response to its prompt and itself.

    The prompt of a block is one causal attention. Its responses are batched to (G, longest): the G queries attend to
    the prompt's keys (shared, never recomputed) followed by their own. Cost is G·R·(P + R), against (Σ R)·(P + Σ R)
    for one masked attention over the block. A block with a single response is plain causal attention.

    Args:
        module: the attention layer, unused.
        query: (1, heads, N, head_dim).
        key, value: (1, key_value_heads, N, head_dim); query heads are shared out evenly.
        attention_mask: must be None.
        blocks: structure of the row, from `PackedBatch.blocks`; must cover all N positions.
        scaling: factor of the scores, None for 1 / √head_dim.
        dropout: probability.

    Returns:
        (1, N, heads, head_dim), and None in place of attention weights.

    Raises:
        ValueError: no blocks given, blocks that do not cover the row, a mask, more than one row, or a feature of the
            model's attention that is not supported here (sliding windows, soft caps, sinks).
    """
    if blocks is None:
        raise ValueError(f"attention {NAME!r} needs the structure of the row: pass blocks= to the model's forward")
    if attention_mask is not None or len(query) != 1:
        raise ValueError(f"attention {NAME!r} takes one packed row without a mask, not {tuple(query.shape)}")
    if sum(block.length for block in blocks) != query.shape[2]:
        raise ValueError(f"blocks cover {sum(b.length for b in blocks)} of {query.shape[2]} positions")
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"attention {NAME!r} does not support {name} ({type(module).__name__})")

    # The gradient of one split is one concatenation; that of many slices adds as many rows of zeros.
    lengths = [block.length for block in blocks]
    rows = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for block, fold, (q, k, v) in zip(blocks, _plan(blocks, query.device), rows, strict=True):
        if fold is None:
            outputs.append(_attend(q, k, v, None, scaling, dropout))
        else:
            outputs += _attend_group(q, k, v, block, fold, scaling, dropout)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _attend_group(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block: Block,
    fold: _Fold,
    scaling: float | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    group = len(block.responses)

    def batched(x: torch.Tensor) -> torch.Tensor:
        return x[0].index_select(1, fold.pad).unflatten(1, (group, -1)).transpose(0, 1)

    def with_prompt(prompt: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([prompt.expand(group, -1, -1, -1), batched(own)], dim=2)

    parts = [block.prompt, block.length - block.prompt]
    (q, own_q), (k, own_k), (v, own_v) = (x.split(parts, dim=2) for x in (q, k, v))
    prompts = _attend(q, k, v, None, scaling, dropout)
    responses = _attend(batched(own_q), with_prompt(k, own_k), with_prompt(v, own_v), fold.mask, scaling, dropout)
    return prompts, responses.transpose(0, 1).flatten(1, 2).index_select(1, fold.unpad)[None]


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    repeats = q.shape[1] // k.shape[1]
    # With a mask and grouped heads CUDA falls back to its slow unfused kernel, so heads are repeated there; on a CPU
    # the fused kernel takes both, and the copy would cost up to half of the time.
    grouped = repeats > 1 and (mask is None or q.device.type == "cpu")
    if repeats > 1 and not grouped:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
