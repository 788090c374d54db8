"""Gumbel noise that any process can recompute, and the straight-through Gumbel-Softmax (1611.01144, 1611.00712).

The noise of a position is a pure function of a key and of the token: a hash instead of a generator's state. So it does
not depend on how samples are packed, on the chunk in which a row is computed, on the rank or the device, and the
backward pass, which recomputes logits chunk by chunk, finds the same noise again without keeping it.
"""

from __future__ import annotations

import torch

# The finalisers of MurmurHash3 (Appleby, public domain), whose integer arithmetic wraps.
_MIX64 = (33, 0xFF51AFD7ED558CCD - (1 << 64), 33, 0xC4CEB9FE1A85EC53 - (1 << 64), 33)
_MIX32 = (16, 0x85EBCA6B - (1 << 32), 13, 0xC2B2AE35 - (1 << 32), 16)

_MANTISSA = 23
"""Random bits of a uniform number: with the half step added it is exact in float32 and never 0 or 1."""


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Scramble int32 or int64, in place. Python's >> on a signed tensor keeps the sign, hence the masks."""
    bits = 32 if x.dtype == torch.int32 else 64
    first, one, second, two, third = _MIX32 if bits == 32 else _MIX64
    for shift, factor in ((first, one), (second, two), (third, 1)):
        x ^= (x >> shift) & ((1 << (bits - shift)) - 1)
        x *= factor
    return x


def position_keys(
    seed: int, step: int, groups: torch.Tensor, members: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """A key for the noise of each position.

    Args:
        seed: of the run.
        step: of the run.
        groups: (R,) index of the group in its step.
        members: (R,) place of the sample in its group.
        positions: (R,) index of the token in its response.

    Returns:
        (R,) int64, on the device of `positions`.
    """
    key = torch.full_like(positions, seed, dtype=torch.int64)
    for part in (step, groups, members, positions):
        key = _mixed(key * 31 + part + 1)
    return key


def gumbel_noise(keys: torch.Tensor, size: int) -> torch.Tensor:
    """Standard Gumbel noise of R positions.

    Args:
        keys: (R,) int64 from `position_keys`.
        size: V, number of tokens.

    Returns:
        (R, V) float32 on the device of `keys`, in [−2.82, 16.64]: beyond lie 6e-8 of the distribution.
    """
    columns = _mixed(torch.arange(1, size + 1, dtype=torch.int32, device=keys.device))
    bits = _mixed(keys.to(torch.int32)[:, None] ^ columns[None, :])
    uniform = ((bits >> (32 - _MANTISSA)) & ((1 << _MANTISSA) - 1)).float().add_(0.5).mul_(0.5**_MANTISSA)
    # log1p of the small numbers, where the largest noise comes from.
    return uniform.neg_().log1p_().neg_().log_().neg_()


def conditional_noise(logprobs: torch.Tensor, noise: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Turn fresh noise into noise under which the sampled token wins: Gumbel noise given its arg-max.

    Top-down construction (Maddison et al., "A* Sampling", 1411.0030): the largest perturbed log-prob of a normalised
    distribution is a standard Gumbel number M, independent of who attains it. The sampled token gets M; each other
    token j gets a Gumbel number of location log p_j truncated at M, which is −log(e^(−M) + e^(−(log p_j + G_j))).

    When tokens are drawn from the distribution, token and noise together are distributed as fresh noise and its
    arg-max are. So a rollout, which is such a draw, can be differentiated at the very tokens that were sampled.

    Args:
        logprobs: (R, V) normalised.
        noise: (R, V) standard Gumbel.
        sampled: (R,) token of each position.

    Returns:
        (R, V) noise, without gradient: its sum with `logprobs` is largest at `sampled`.
    """
    logprobs = logprobs.detach()
    place = sampled[:, None]
    largest = noise.gather(1, place).to(logprobs.dtype)
    others = -torch.logaddexp(-largest, -(logprobs + noise))
    # Where a token would have exceeded M by far, rounding makes it equal to M.
    others = torch.minimum(others, torch.nextafter(largest, torch.full_like(largest, -torch.inf)))
    return others.scatter(1, place, largest) - logprobs


def soft_one_hot(logprobs: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax((log p + G) / τ): (R, V), each row a point of the simplex, with the gradient of `logprobs`."""
    return ((logprobs + noise) / temperature).softmax(1)


def straight_through(soft: torch.Tensor, tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Embeddings of hard tokens with the gradient of soft ones.

    Args:
        soft: (R, V) with gradient.
        tokens: (R,) what the forward pass shows.
        table: (V, D) embeddings.

    Returns:
        (R, D): `table[tokens]` in value, `soft @ table` in gradient.
    """
    embedded = soft @ table
    return table[tokens] + (embedded - embedded.detach())
