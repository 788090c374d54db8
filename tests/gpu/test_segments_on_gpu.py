"""The attention for GPUs with its real kernels: equal to the form by blocks, and as many launches for many groups."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from learner.batches.batch import Block
from learner.model import attention
from learner.model.segments import FlashKernels
from tests.gpu import NEEDS_GPU

pytestmark = NEEDS_GPU
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 4, 64), (16, 8, 128), (14, 2, 64)])
def test_the_kernels_agree_with_the_form_by_blocks(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert attention.disagreement(FlashKernels(), GPU, dtype, *heads) is None
    assert isinstance(attention._segment_kernels(GPU, dtype, *heads), FlashKernels)


def kernels_of(groups: int) -> Counter[str]:
    """What one layer's attention starts on the device, forward and backward."""
    blocks = tuple(Block(500 * i, 180, (100, 60, 160)) for i in range(groups))
    query, key, value = (
        torch.randn(1, heads, 500 * groups, 64, dtype=torch.bfloat16, device=GPU, requires_grad=True)
        for heads in (4, 2, 2)
    )

    def run() -> None:
        output, _ = attention.shared_prefix_attention(torch.nn.Identity(), query, key, value, None, blocks=blocks)
        torch.autograd.grad(output.float().sum(), (query, key, value))
        torch.cuda.synchronize()

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
    return Counter({event.key: event.count for event in profiled.key_averages()})


def test_launches_do_not_grow_with_the_number_of_groups() -> None:
    two, twenty = (sum(kernels_of(groups).values()) for groups in (2, 20))
    assert 0 < twenty <= two + 4  # a kernel may be cut for a larger size
    assert twenty < 100
