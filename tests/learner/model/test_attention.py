"""Shared prefix, plain packing and an ordinary padded forward are the same function."""

from __future__ import annotations

import pytest
import torch

from learner.batches.batch import Block, TrainGroup
from learner.batches.packing import pack
from learner.model import attention
from tests.learner.batches.packed_cases import (
    MODELS,
    VOCAB,
    gradients,
    largest_difference,
    packed_logprobs,
    padded_logprobs,
    random_group,
    tiny_model,
)

# Lengths that differ, are equal, are 1, and groups of one sample.
GROUPS = [
    random_group(7, [3, 1, 5], seed=1),
    random_group(1, [2, 2, 2, 2], seed=2),
    random_group(20, [6], seed=3),
    random_group(11, [4, 9], seed=4),
]


def _backward(model: torch.nn.Module, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(9))
    model.zero_grad()
    (logprobs * weights).mean().backward()
    return gradients(model)


@pytest.mark.parametrize("reference", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_shared_equals_plain_equals_padded(kind: str, reference: str) -> None:
    model, ordinary = tiny_model(kind, attention.NAME), tiny_model(kind, reference)
    expected = padded_logprobs(ordinary, GROUPS, temperature=0.8)
    assert expected.std() > 1  # a near-uniform model would prove nothing
    expected_gradients = _backward(ordinary, expected)
    assert max(float(g.abs().max()) for g in expected_gradients.values()) > 0.1
    for shared in (True, False):
        logprobs = packed_logprobs(model, pack(GROUPS, shared), temperature=0.8)
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
        assert largest_difference(_backward(model, logprobs), expected_gradients) < 1e-5


def test_untied_head() -> None:
    model, ordinary = tiny_model("llama", attention.NAME, tie=False), tiny_model("llama", "sdpa", tie=False)
    ours, expected = packed_logprobs(model, pack(GROUPS)), padded_logprobs(ordinary, GROUPS)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert largest_difference(_backward(model, ours), _backward(ordinary, expected)) < 1e-5


def test_activation_checkpointing_changes_nothing() -> None:
    model = tiny_model("qwen3", attention.NAME)
    batch = pack(GROUPS)
    expected = _backward(model, packed_logprobs(model, batch))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # transformers checkpoints in training mode only; this model has no dropout
    assert largest_difference(_backward(model, packed_logprobs(model, batch)), expected) == 0.0


def test_siblings_and_other_blocks_are_invisible() -> None:
    model = tiny_model("qwen3", attention.NAME)
    batch = pack(GROUPS)
    before = packed_logprobs(model, batch)
    # Replace the second response of the first group: nothing but that response may change.
    start = batch.blocks[0].prompt + batch.blocks[0].responses[0]
    batch.input_ids[start] = (batch.input_ids[start] + 1) % VOCAB
    after = packed_logprobs(model, batch)
    others = batch.sample_of != 1
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=0)


def test_bfloat16_stays_bfloat16() -> None:
    model = tiny_model("qwen3", attention.NAME)
    batch = pack(GROUPS)
    expected = packed_logprobs(model, batch)
    half = packed_logprobs(model.to(torch.bfloat16), batch)
    assert half.dtype == torch.float32
    assert (half - expected).abs().mean() < 0.2


def test_registering_twice_and_switching_an_existing_model() -> None:
    attention.register()
    attention.register()
    model = tiny_model("qwen3", "sdpa")
    expected = padded_logprobs(model, GROUPS)
    model.set_attn_implementation(attention.NAME)
    torch.testing.assert_close(packed_logprobs(model, pack(GROUPS)), expected, rtol=0, atol=1e-5)


def _call(blocks: tuple[Block, ...] | None, rows: int = 1, **kwargs: object) -> None:
    query, key = torch.zeros(rows, 4, 6, 8), torch.zeros(rows, 2, 6, 8)
    attention.shared_prefix_attention(torch.nn.Identity(), query, key, key, None, blocks=blocks, **kwargs)


def test_misuse_is_refused() -> None:
    blocks = (Block(0, 2, (3, 1)),)
    _call(blocks, sliding_window=None)
    with pytest.raises(ValueError, match="pass blocks="):
        _call(None)
    with pytest.raises(ValueError, match="cover 5 of 6"):
        _call((Block(0, 2, (3,)),))
    with pytest.raises(ValueError, match="one packed row"):
        _call(blocks, rows=2)
    with pytest.raises(ValueError, match="sliding_window"):
        _call(blocks, sliding_window=4)


def test_a_prompt_of_one_position_and_one_group() -> None:
    group: TrainGroup = random_group(1, [1, 1], seed=5)
    model, ordinary = tiny_model("qwen3", attention.NAME), tiny_model("qwen3", "sdpa")
    expected = padded_logprobs(ordinary, [group])
    torch.testing.assert_close(packed_logprobs(model, pack([group])), expected, rtol=0, atol=1e-5)
