"""Attention over packed rows, in which the responses of a group share one copy of their prompt.

`register()` makes `attn_implementation="shared_prefix"` known to transformers. Any decoder-only model that hands its
keyword arguments down to the attention interface (Qwen2, Qwen3, Llama, …) then takes `blocks=` in its forward:

    model(inputs_embeds=row[None], position_ids=positions[None], blocks=batch.blocks, use_cache=False)

One forward pass serves prompt and responses, so FSDP2's hooks and activation checkpointing see an ordinary layer.
No mask over the whole row is built: transformers skips it for an attention without a registered mask function.

There are two forms of the same function. Block by block, with kernels that any device has: a CPU loses nothing by it.
And in two kernel calls (`segments.py`), where a GPU would otherwise wait for launches; it is compared with the first
form before it is used.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from learner.batches.batch import Block
from learner.model import segments
from learner.model.segments import FlashKernels

logger = logging.getLogger(__name__)

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
    segments.plan.cache_clear()


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

    Block by block the prompt is one causal attention. Its responses are batched to (G, longest): the G queries attend
    to the prompt's keys (shared, never recomputed) followed by their own. Cost is G·R·(P + R), against
    (Σ R)·(P + Σ R) for one masked attention over the block. A block with a single response is plain causal attention.

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

    kernels = None if dropout else _segment_kernels(query.device, query.dtype, query.shape[1], *key.shape[1::2])
    if kernels is not None:
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        return segments.attend(q, k, v, segments.plan(blocks, query.device), scaling, kernels)[None], None
    return _by_block(query, key, value, blocks, scaling, dropout).transpose(1, 2), None


@lru_cache
def _segment_kernels(
    device: torch.device, dtype: torch.dtype, heads: int, key_value_heads: int, head_dim: int
) -> FlashKernels | None:
    """The kernels for such tensors, or None where there are none that agree with the form by blocks."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    # In a thread of its own: activation checkpointing would note the tensors of this comparison as the layer's.
    with ThreadPoolExecutor(1) as thread:
        fault = thread.submit(disagreement, FlashKernels(), device, dtype, heads, key_value_heads, head_dim).result()
    if fault is None:
        return FlashKernels()
    logger.warning("attention over packed rows goes block by block, which is slower on a GPU: %s", fault)
    return None


def disagreement(
    kernels: FlashKernels, device: torch.device, dtype: torch.dtype, heads: int, key_value_heads: int, head_dim: int
) -> str | None:
    """How the two forms differ on a small row, in the output or a gradient, by more than rounding; None if not."""
    blocks = (Block(0, 19, (7, 1, 12)), Block(39, 5, (9,)), Block(53, 1, (2, 2)))
    rows = sum(block.length for block in blocks)
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> torch.Tensor:
        drawn = torch.randn(1, count, rows, head_dim, generator=generator)
        return drawn.to(device, dtype).requires_grad_()

    inputs, weights = (draw(heads), draw(key_value_heads), draw(key_value_heads)), draw(heads).detach()
    found = []
    try:
        for by_block in (True, False):
            if by_block:
                output = _by_block(*inputs, blocks, None, 0.0)
            else:
                q, k, v = (x.squeeze(0).transpose(0, 1) for x in inputs)
                output = segments.attend(q, k, v, segments.plan(blocks, device), None, kernels).transpose(0, 1)[None]
            found.append([output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)])
    except Exception as error:  # noqa: BLE001 - whatever a kernel raises that does not know this device or shape
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    # Two roundings of a sum whose terms are rounded themselves.
    bound = 8 * torch.finfo(dtype).eps
    for name, a, b in zip(
        ("output", "gradient of queries", "gradient of keys", "gradient of values"), *found, strict=True
    ):
        gap = float((a - b).abs().max() / a.abs().max())
        if not gap <= bound:
            return f"the {name} of the fused form differs by {gap:.2g} of its largest value, more than {bound:.2g}"
    return None


def _by_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: tuple[Block, ...],
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    # The gradient of one split is one concatenation; that of many slices adds as many rows of zeros.
    lengths = [block.length for block in blocks]
    rows = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for block, fold, (q, k, v) in zip(blocks, _plan(blocks, query.device), rows, strict=True):
        if fold is None:
            outputs.append(_attend(q, k, v, None, scaling, dropout))
        else:
            outputs += _attend_group(q, k, v, block, fold, scaling, dropout)
    return torch.cat(outputs, dim=2)


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
