"""Log-probs over a real vocabulary hold a chunk of logits at a time, forward and backward. Sizes are real, on meta."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from learner.model.logprobs import TokenMasks, distribution_kl, selected_logprobs
from tests.learner.traced_memory import TracedMemory

TARGETS, VOCABULARY, HIDDEN, CHUNK = 4_000, 151_936, 1_024, 128
"""As with Qwen3-0.6B."""

FULL = TARGETS * VOCABULARY * 4
"""Bytes of all logits in float32: 2.4 GB."""

OUTPUT_LAYER = VOCABULARY * HIDDEN * 4
"""Bytes of its gradient."""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def plain(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (hidden @ head.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def chunked(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return selected_logprobs(hidden, head, targets, temperature=0.9, chunk=CHUNK)[0]


def full_kl(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    masks = TokenMasks.build(VOCABULARY, None, None, 0, ())
    return distribution_kl(hidden, head, hidden.detach(), head.detach(), masks, 0.9, CHUNK)


def peak(loss: Loss, trained_head: bool) -> int:
    hidden = torch.empty(TARGETS, HIDDEN, device="meta", requires_grad=True)
    head = torch.empty(VOCABULARY, HIDDEN, device="meta", requires_grad=trained_head)
    targets = torch.empty(TARGETS, dtype=torch.long, device="meta")
    with TracedMemory() as memory:
        loss(hidden, head, targets).sum().backward()
    assert hidden.grad is not None and (head.grad is not None) == trained_head
    return memory.peak


def test_the_trace_sees_all_logits_of_a_plain_loss() -> None:
    assert 2 * FULL < peak(plain, trained_head=False) < 5 * FULL


@pytest.mark.parametrize(("loss", "tensors"), [(chunked, 3), (full_kl, 6)])
def test_no_more_than_some_chunks_of_logits_are_held(loss: Loss, tensors: int) -> None:
    """Of the size of a chunk's logits there are a few tensors at a time. An output layer that learns adds gradients of
    its own size, the sum so far, the next one and their sum, and no logits."""
    chunk = CHUNK * VOCABULARY * 4
    frozen, trained = (peak(loss, trained_head) for trained_head in (False, True))
    assert frozen < tensors * chunk + 2 * TARGETS * HIDDEN * 4 < FULL / 3
    assert trained < 3 * OUTPUT_LAYER + tensors * chunk < FULL
