"""A checksum of tensors that is computed where they are, on any device, in integer operations of torch alone.

Both ends of a transfer that stays on GPUs compute it on theirs. Sums modulo 2⁶⁴ do not depend on the order of the
additions, so all devices agree to the bit.
"""

from __future__ import annotations

import secrets

import torch

ROW = 2**16
"""Words of four bytes in a row: what is reduced to one number with the same keys."""
ROWS = 32
"""Rows at a time: in int64 they take 16 MiB, and so do their products."""
_GAMMA, _FIRST, _SECOND = (
    int.from_bytes(constant.to_bytes(8, "big"), "big", signed=True)
    for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""Of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""

Seeds = tuple[int, int]


def draw_seeds() -> Seeds:
    """For one publication; both ends need the same."""
    return secrets.randbits(63), secrets.randbits(63)


class DeviceDigest:
    """Digests of tensors on one device, under keys that follow from two seeds.

    For each seed a tensor is hashed in two levels. Each row of `ROW` words wᵢ of 32 bits becomes Σ kᵢ·wᵢ mod 2⁶⁴. What
    the rows gave, in words of 32 bits after dtype, shape and length, becomes one such sum with other keys. This is
    MULTILINEAR of Lemire and Kaser (Strongly universal string hashing is fast, The Computer Journal 57, 2014): with
    random keys of 64 bits, two different strings of words of 32 bits agree in the top 33 bits of their sums with
    probability 2⁻³³. So two different tensors agree on one seed with probability 2⁻³² at most (either level may fail),
    and on both with 2⁻⁶⁴. The keys are splitmix64 of a counter, and not random: the bound holds for faults that know
    nothing of seeds drawn anew for each publication. It is no protection from somebody who knows them.
    """

    def __init__(self, seeds: Seeds, device: torch.device | str) -> None:
        self._seeds = seeds
        self._keys = [_keys(seed, 0, ROW, device) for seed in seeds]

    def __call__(self, tensor: torch.Tensor) -> str:
        """Hex digest over dtype, shape and bytes.

        Args:
            tensor: on the device of this object. It is copied there when it is not contiguous, or does not begin at a
                multiple of four bytes.
        """
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if flat.storage_offset() % 4:
            flat = flat.clone()
        whole = len(flat) // 4 // ROW * ROW
        blocks = list(flat[: 4 * whole].view(torch.int32).view(-1, ROW).split(ROWS)) if whole else []
        if len(flat) > 4 * whole:
            blocks.append(_padded(flat[4 * whole :]).view(torch.int32)[None])
        sums: list[list[torch.Tensor]] = [[], []]
        for block in blocks:
            words = block.long()
            for found, keys in zip(sums, self._keys, strict=True):
                found.append((words * keys[: words.shape[1]]).sum(1))
        name = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        head = torch.tensor([len(flat) & 0xFFFFFFFF, len(flat) >> 32, len(name), *name])
        totals = []
        for seed, found in zip(self._seeds, sums, strict=True):
            rows = torch.cat(found).cpu() if found else head[:0]
            words = torch.cat([head, rows & 0xFFFFFFFF, (rows >> 32) & 0xFFFFFFFF])
            totals.append(int((words * _keys(seed, ROW, len(words), "cpu")).sum()))
        return "".join(f"{total % 2**64:016x}" for total in totals)


def _padded(data: torch.Tensor) -> torch.Tensor:
    """Zeros up to a whole word; the length is hashed too."""
    return torch.nn.functional.pad(data, (0, -len(data) % 4)) if len(data) % 4 else data


def _keys(seed: int, start: int, count: int, device: torch.device | str) -> torch.Tensor:
    """int64 (count,): outputs number `start` and following of splitmix64 from this seed."""
    state = torch.arange(start + 1, start + 1 + count, dtype=torch.int64, device=device) * _GAMMA + seed
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, with zeros from the left: torch repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
