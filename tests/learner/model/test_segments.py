"""Attention over segments, the form for GPUs: the same function as the form by blocks, with few launches.

FlashAttention's kernels for segments exist for CUDA only. Here torch's FlashAttention for CPUs stands in for them,
segment by segment; `tests/gpu` runs the real ones.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner.batches.batch import Block
from learner.batches.packing import pack
from learner.model import attention, segments
from learner.model.segments import FlashKernels, Segments
from tests.learner.batches.packed_cases import largest_difference, packed_logprobs, tiny_model
from tests.learner.model.test_attention import GROUPS, _backward

aten = torch.ops.aten


class KernelsForCPU(FlashKernels):
    """As `FlashKernels`, but a call for each segment."""

    def forward(
        self, query: Any, key: Any, value: Any, asking: Segments, asked: Segments, causal: bool, scale: Any
    ) -> Any:
        self.repeats = query.shape[1] // key.shape[1]
        output, normaliser = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
        for rows, columns in _pairs(asking, asked):
            inputs = query[rows], *(x[columns].repeat_interleave(self.repeats, 1) for x in (key, value))
            found, lse = aten._scaled_dot_product_flash_attention_for_cpu(
                *map(_batch, inputs), 0.0, causal, scale=scale
            )
            output[rows], normaliser[:, rows] = found[0].transpose(0, 1), lse[0]
        return output, normaliser

    def backward(
        self, gradient: Any, query: Any, key: Any, value: Any, output: Any, normaliser: Any,
        asking: Segments, asked: Segments, causal: bool, scale: Any,
    ) -> Any:  # fmt: skip
        found = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for rows, columns in _pairs(asking, asked):
            inputs = query[rows], *(x[columns].repeat_interleave(self.repeats, 1) for x in (key, value))
            parts = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _batch(gradient[rows]), *map(_batch, inputs), _batch(output[rows]),
                normaliser[:, rows][None].contiguous(), 0.0, causal, scale=scale,
            )  # fmt: skip
            of_query, *others = (part[0].transpose(0, 1) for part in parts)
            found[0][rows] = of_query
            for whole, part in zip(found[1:], others, strict=True):
                whole[columns] = part.unflatten(1, (-1, self.repeats)).sum(2)
        return found


def _pairs(asking: Segments, asked: Segments) -> Iterator[tuple[slice, slice]]:
    ends = asking.ends.tolist(), asked.ends.tolist()
    assert max(b - a for a, b in zip(ends[0], ends[0][1:], strict=False)) == asking.longest
    assert max(b - a for a, b in zip(ends[1], ends[1][1:], strict=False)) == asked.longest
    for a, b, c, d in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        yield slice(a, b), slice(c, d)


def _batch(x: torch.Tensor) -> torch.Tensor:
    """(rows, heads, head_dim) → (1, heads, rows, head_dim)."""
    return x.transpose(0, 1)[None].contiguous()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_equals_the_form_by_blocks(kind: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(kind, attention.NAME), pack(GROUPS, shared)
    expected = packed_logprobs(model, batch)
    gradients = _backward(model, expected)
    kernels = KernelsForCPU()
    monkeypatch.setattr(attention, "_segment_kernels", lambda *shape: kernels)
    logprobs = packed_logprobs(model, batch)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    assert largest_difference(_backward(model, logprobs), gradients) < 1e-5


def test_works_under_activation_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = KernelsForCPU()
    monkeypatch.setattr(attention, "_segment_kernels", lambda *shape: kernels)
    model, batch = tiny_model("qwen3", attention.NAME), pack(GROUPS)
    expected = _backward(model, packed_logprobs(model, batch))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert largest_difference(_backward(model, packed_logprobs(model, batch)), expected) == 0.0


def test_the_comparison_before_use() -> None:
    shape = (torch.device("cpu"), torch.float32, 4, 2, 16)
    assert attention.disagreement(KernelsForCPU(), *shape) is None

    class ForgetsPrompts(KernelsForCPU):
        def forward(self, *inputs: Any) -> Any:
            output, normaliser = super().forward(*inputs)
            causal = inputs[5]
            return output, normaliser if causal else normaliser - 30

    class GradientOfAPart(KernelsForCPU):
        def backward(self, *inputs: Any) -> Any:
            return [2 * part for part in super().backward(*inputs)]

    assert "output of the fused form differs" in (attention.disagreement(ForgetsPrompts(), *shape) or "")
    assert "gradient of queries" in (attention.disagreement(GradientOfAPart(), *shape) or "")
    # There is no such kernel for a CPU, whatever torch may call the error.
    assert "Error" in (attention.disagreement(FlashKernels(), *shape) or "")


def test_a_device_whose_kernels_disagree_goes_by_blocks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention, "disagreement", lambda *_: "the output differs")
    choose = attention._segment_kernels.__wrapped__
    with caplog.at_level(logging.WARNING):
        assert choose(torch.device("cuda"), torch.bfloat16, 4, 2, 16) is None
    assert "block by block" in caplog.text and "the output differs" in caplog.text
    monkeypatch.setattr(attention, "disagreement", lambda *_: None)
    assert isinstance(choose(torch.device("cuda"), torch.bfloat16, 4, 2, 16), FlashKernels)
    assert choose(torch.device("cuda"), torch.float32, 4, 2, 16) is None
    assert choose(torch.device("cpu"), torch.bfloat16, 4, 2, 16) is None


class Launches(TorchDispatchMode):
    """Counts operations that start a kernel: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _launches(groups: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of one layer's attention with the kernels for GPUs, forward and backward; without a device."""
    meta, blocks = torch.device("meta"), tuple(Block(40 * i, 20, (10, 4, 6)) for i in range(groups))
    monkeypatch.setattr(attention, "_segment_kernels", lambda *shape: FlashKernels())
    segments.plan(blocks, meta)  # made once for all layers
    query, key, value = (
        torch.empty(1, heads, 40 * groups, 32, dtype=torch.bfloat16, device=meta, requires_grad=True)
        for heads in (4, 2, 2)
    )
    with Launches() as launches:
        output, _ = attention.shared_prefix_attention(torch.nn.Identity(), query, key, value, None, blocks=blocks)
        torch.autograd.grad(output.sum(), (query, key, value))
    return launches.found


def test_launches_do_not_grow_with_the_number_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    two, twenty = _launches(2, monkeypatch), _launches(20, monkeypatch)
    assert two == twenty
    assert two["aten._flash_attention_forward.default"] == two["aten._flash_attention_backward.default"] == 2
    assert sum(two.values()) < 50
