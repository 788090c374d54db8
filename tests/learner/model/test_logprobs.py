"""Chunked, masked log-probs against the direct formula."""

from __future__ import annotations

import pytest
import torch

from learner.model.logprobs import TokenMasks, distribution_kl, selected_logprobs

T, H, V = 23, 8, 17
STOPS = (3, 5)


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, H, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(6, V, (T,), generator=generator)
    step_of = torch.arange(T) % 5
    return hidden, head, targets, step_of


def _direct(
    hidden: torch.Tensor, head: torch.Tensor, forbidden: torch.Tensor, temperature: float
) -> torch.distributions.Categorical:
    logits = (hidden @ head.T).float().masked_fill(forbidden, float("-inf"))
    return torch.distributions.Categorical(logits=logits / temperature)


@pytest.mark.parametrize("chunk", [1, 7, T, 1000])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_direct_formula(chunk: int, masked: bool) -> None:
    hidden, head, targets, step_of = _inputs()
    forbidden = torch.zeros(T, V, dtype=torch.bool)
    arguments: dict[str, object] = {}
    if masked:
        allowed = torch.ones(V, dtype=torch.bool)
        allowed[[0, 2]] = False
        forbidden[:, [0, 2]] = True
        forbidden[(step_of < 2)[:, None] & torch.isin(torch.arange(V), torch.tensor(STOPS))] = True
        arguments = {"allowed": allowed, "step_of": step_of, "min_new_tokens": 2, "stop_ids": STOPS}
        targets[4] = 3  # a stop where it is allowed (step 4)
    logprobs, entropy = selected_logprobs(hidden, head, targets, temperature=0.7, chunk=chunk, **arguments)
    direct = _direct(hidden, head, forbidden, 0.7)
    expected = direct.log_prob(targets)
    torch.testing.assert_close(logprobs, expected)
    p = direct.probs
    torch.testing.assert_close(entropy, torch.special.entr(p).sum(-1).detach(), atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad
    weights = torch.linspace(-1, 1, T)
    ours = torch.autograd.grad((logprobs * weights).sum(), (hidden, head))
    theirs = torch.autograd.grad((expected * weights).sum(), (hidden, head))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_half_precision_head_then_float32() -> None:
    hidden, head, targets, _ = _inputs(torch.bfloat16)
    logprobs, entropy = selected_logprobs(hidden, head, targets, chunk=4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    expected = (hidden @ head.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)


def test_no_more_than_a_chunk_of_logits_is_kept() -> None:
    hidden, head, targets, _ = _inputs()
    largest = 0

    def watch(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(watch, lambda tensor: tensor):
        selected_logprobs(hidden, head, targets, chunk=4)
    # What waits for the backward pass: slices of the inputs and the head, no logits at all.
    assert largest <= max(T * H, V * H)


def test_nothing_and_without_gradients() -> None:
    hidden, head, targets, _ = _inputs()
    empty, entropy = selected_logprobs(hidden[:0], head, targets[:0])
    assert empty.shape == entropy.shape == (0,) and empty.dtype == torch.float32
    with torch.no_grad():
        logprobs, _ = selected_logprobs(hidden, head, targets, chunk=4)
    assert not logprobs.requires_grad
    torch.testing.assert_close(logprobs, selected_logprobs(hidden, head, targets)[0].detach())


def test_targets_that_the_masks_forbid_are_refused() -> None:
    hidden, head, targets, step_of = _inputs()
    allowed = torch.ones(V, dtype=torch.bool)
    allowed[targets[3]] = False
    with pytest.raises(ValueError, match="not among the allowed tokens"):
        selected_logprobs(hidden, head, targets, allowed=allowed)
    targets[5] = STOPS[0]  # step 0 of the second response
    with pytest.raises(ValueError, match="stops before min_new_tokens"):
        selected_logprobs(hidden, head, targets, step_of=step_of, min_new_tokens=1, stop_ids=STOPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"chunk": 0}, "chunk"),
        ({"min_new_tokens": 1, "stop_ids": STOPS}, "step_of"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, object], message: str) -> None:
    hidden, head, targets, _ = _inputs()
    with pytest.raises(ValueError, match=message):
        selected_logprobs(hidden, head, targets, **arguments)


@pytest.mark.parametrize("chunk", [3, 100])
def test_distribution_kl_against_its_definition(chunk: int) -> None:
    """Value and gradient, with masked tokens in both distributions."""
    generator = torch.Generator().manual_seed(2)
    hidden, head, other_hidden, other_head = (
        torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (8, 9, 8, 9)
    )
    hidden.requires_grad_()
    head.requires_grad_()
    allowed = torch.tensor([0, 1, 1, 1, 0, 1, 1, 1, 1], dtype=torch.bool)
    masks = TokenMasks.build(9, allowed, torch.arange(8) % 4, 2, (3,))
    kl = distribution_kl(hidden, head, other_hidden, other_head, masks, 0.8, chunk)
    gradients = torch.autograd.grad(kl.sum(), (hidden, head))
    for row in range(8):
        kept = [i for i in range(9) if allowed[i] and not (row % 4 < 2 and i == 3)]
        ours, theirs = ((h[row] @ w[kept].T / 0.8).softmax(0) for h, w in ((hidden, head), (other_hidden, other_head)))
        expected = (ours * (ours.log() - theirs.log())).sum()
        assert float(kl[row].detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
        (slope,) = torch.autograd.grad(expected, hidden)
        torch.testing.assert_close(gradients[0][row], slope[row])
    assert bool(torch.isfinite(gradients[1]).all()) and float(gradients[1][0].abs().max()) == 0
    own = distribution_kl(hidden, head, hidden.detach(), head.detach(), masks, 0.8, chunk)
    torch.testing.assert_close(own, torch.zeros_like(own))
