"""Noise that depends on its key alone, and the truncated Gumbel construction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses.gumbel import conditional_noise, gumbel_noise, position_keys, soft_one_hot, straight_through


def keys(count: int, seed: int = 0, step: int = 1, group: int = 0, member: int = 0) -> torch.Tensor:
    positions = torch.arange(count)
    return position_keys(seed, step, torch.full_like(positions, group), torch.full_like(positions, member), positions)


def test_noise_is_standard_gumbel_without_correlations() -> None:
    noise = gumbel_noise(keys(2000), 300).double()
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(torch.pi**2 / 6, abs=0.02)
    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        expected = -torch.log(-torch.log(torch.tensor(quantile, dtype=torch.float64)))
        assert (noise < expected).double().mean() == pytest.approx(quantile, abs=0.004)
    rows = torch.corrcoef(noise[:200])
    columns = torch.corrcoef(noise.T[:200])
    for matrix, size in ((rows, 300), (columns, 2000)):
        assert float((matrix - torch.eye(200)).abs().max()) < 6 / size**0.5


def test_every_part_of_the_key_matters_and_nothing_else() -> None:
    base = gumbel_noise(keys(20), 50)
    assert torch.equal(base, gumbel_noise(keys(20), 50))
    assert torch.equal(base[7:9], gumbel_noise(keys(20)[7:9], 50)), "chunks see the rows of the whole"
    assert torch.equal(base[:, :30], gumbel_noise(keys(20), 30))
    for change in ({"seed": 1}, {"step": 2}, {"group": 1}, {"member": 1}):
        assert (gumbel_noise(keys(20, **change), 50) == base).float().mean() < 0.01, change
    assert len(torch.unique(base[:, 0])) == 20


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.01, 60.0))
def test_conditional_noise_lets_the_sampled_token_win(seed: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs = (scale * torch.randn(50, size, generator=generator)).log_softmax(1)
    sampled = torch.randint(size, (50,), generator=generator)  # unlikely tokens too
    noise = conditional_noise(logprobs, gumbel_noise(keys(50, seed), size), sampled)
    assert torch.isfinite(noise).all()
    perturbed = (logprobs + noise).double()
    own = perturbed.gather(1, sampled[:, None])
    rounding = 1e-5 * (1 + logprobs.abs().max())
    assert bool((perturbed <= own + rounding).all())
    if scale < 5:
        assert torch.equal(perturbed.argmax(1), sampled)


def test_marginally_conditional_noise_is_fresh_noise() -> None:
    """Tokens drawn from p and noise conditioned on them: each coordinate's law must be that of plain Gumbel noise."""
    count, size = 60_000, 5
    generator = torch.Generator().manual_seed(1)
    logprobs = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01]).log().expand(count, size)
    sampled = torch.multinomial(logprobs.exp(), 1, replacement=True, generator=generator)[:, 0]
    conditional = conditional_noise(logprobs, gumbel_noise(keys(count, seed=3), size), sampled)
    fresh = gumbel_noise(keys(count, seed=4), size)
    # Two-sample Kolmogorov–Smirnov distance of each coordinate; 1.95·√(2/n) is its 0.1 % point.
    for token in range(size):
        merged = torch.cat([conditional[:, token], fresh[:, token]])
        steps = torch.cat([torch.ones(count), -torch.ones(count)])[merged.argsort()]
        assert float(steps.cumsum(0).abs().max()) / count < 1.95 * (2 / count) ** 0.5, token
    # The joint law too: what Gumbel-Softmax makes of either has the same first and second moments.
    soft, plain = (soft_one_hot(logprobs, noise, 0.7) for noise in (conditional, fresh))
    torch.testing.assert_close(soft.mean(0), plain.mean(0), atol=0.006, rtol=0)
    torch.testing.assert_close(soft.T @ soft / count, plain.T @ plain / count, atol=0.006, rtol=0)


def test_straight_through_shows_the_token_and_has_the_soft_gradient() -> None:
    """Finite differences of the soft embedding, at the slope that the loss has at the hard one."""
    torch.manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    table = torch.randn(6, 3, dtype=torch.float64)
    noise = gumbel_noise(keys(4), 6).double()
    tokens = (logits.log_softmax(1) + noise).argmax(1)

    def soft(values: torch.Tensor) -> torch.Tensor:
        return soft_one_hot(values.log_softmax(1), noise, 0.8)

    embedded = straight_through(soft(logits), tokens, table)
    torch.testing.assert_close(embedded, table[tokens])
    loss = embedded.pow(3).sum()
    loss.backward()
    slope = 3 * table[tokens].pow(2)
    for index in torch.cartesian_prod(torch.arange(4), torch.arange(6)):
        step = torch.zeros_like(logits)
        step[tuple(index)] = 1e-6
        with torch.no_grad():
            change = ((soft(logits + step) - soft(logits - step)) @ table * slope).sum() / 2e-6
        assert logits.grad is not None and logits.grad[tuple(index)] == pytest.approx(float(change), abs=1e-7)
