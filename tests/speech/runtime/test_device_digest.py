from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.runtime.device_digest import ROW, ROWS, DeviceDigest, _keys, draw_seeds
from speech.runtime.weights import bytes_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8]
SEEDS = (0x0123456789ABCDEF, 0x7EDCBA9876543210)
digest = DeviceDigest(SEEDS, "cpu")


def drawn(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random bytes of this type: all values, NaN too."""
    width = torch.empty(0, dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size * width,), dtype=torch.uint8, generator=generator).view(dtype)


def simple(tensor: torch.Tensor, seeds: tuple[int, int] = SEEDS) -> str:
    """The same digest in Python's whole numbers, word for word."""

    def key(seed: int, counter: int) -> int:
        z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    data, name = bytes_of(tensor).tobytes(), f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    padded = data + b"\0" * (-len(data) % 4)
    words = [int.from_bytes(padded[i : i + 4], "little", signed=True) for i in range(0, len(padded), 4)]
    parts = []
    for seed in seeds:
        rows = [
            sum(key(seed, i) * word for i, word in enumerate(words[start : start + ROW])) % 2**64
            for start in range(0, len(words), ROW)
        ]
        above = [len(data) % 2**32, len(data) >> 32, len(name), *name]
        above += [row % 2**32 for row in rows] + [row >> 32 for row in rows]
        parts.append(sum(key(seed, ROW + i) * word for i, word in enumerate(above)) % 2**64)
    return "".join(f"{part:016x}" for part in parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 3, 7, 1000, 2 * ROW + 5])
def test_it_is_what_its_definition_says(size: int, dtype: torch.dtype) -> None:
    tensor = drawn(size, dtype)
    assert digest(tensor) == simple(tensor)


def test_keys_are_splitmix64() -> None:
    """Its first outputs from seed 1234567, as published with its reference implementation."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(key) % 2**64 for key in _keys(1234567, 0, 5, "cpu")] == expected


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3000), st.sampled_from(DTYPES), st.integers(0, 2**31), st.integers(0, 2**40), st.integers(0, 2**40)
)
def test_equal_tensors_agree_and_one_flipped_bit_shows(
    size: int, dtype: torch.dtype, seed: int, place: int, bit: int
) -> None:
    seeds = draw_seeds()
    keyed = DeviceDigest(seeds, "cpu")
    tensor = drawn(size, dtype, seed)
    copy = tensor.clone()
    assert keyed(copy) == keyed(tensor)
    data = copy.view(torch.uint8)
    data[place % len(data)] ^= 1 << bit % 8
    assert keyed(copy) != keyed(tensor)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 3000), st.sampled_from(DTYPES), st.integers(0, 2**31), st.integers(0, 2**40), st.integers(1, 99))
def test_exchanged_and_zeroed_elements_show(size: int, dtype: torch.dtype, seed: int, place: int, length: int) -> None:
    tensor = drawn(size, dtype, seed)
    first, second = place % size, (place + length) % size
    swapped = tensor.clone()
    swapped[first], swapped[second] = tensor[second].clone(), tensor[first].clone()
    zeroed = tensor.clone()
    zeroed[first : first + length] = 0
    for changed in (swapped, zeroed):
        same = torch.equal(changed.view(torch.uint8), tensor.view(torch.uint8))
        assert (digest(changed) == digest(tensor)) == same


def test_every_bit_of_every_place_counts_across_rows() -> None:
    """Blocks, rows and the rest of a row are joined without a gap: a bit at each of their ends."""
    size = (ROWS + 2) * ROW + 3
    tensor = drawn(size, torch.float32)
    before = digest(tensor)
    data = tensor.view(torch.int32)
    for place in (0, ROW - 1, ROW, ROWS * ROW - 1, ROWS * ROW, (ROWS + 2) * ROW - 1, (ROWS + 2) * ROW, size - 1):
        for bit in (0, 31):
            data[place] ^= -(2**31) if bit == 31 else 1
            assert digest(tensor) != before, (place, bit)
            data[place] ^= -(2**31) if bit == 31 else 1
    assert digest(tensor) == before
    rows = tensor[: 2 * ROW].view(2, ROW)
    assert digest(rows) != digest(rows.flip(0)), "rows have the same keys, and still a place"


def test_dtype_shape_and_length_count() -> None:
    tensor = torch.zeros(6, 4)
    others = [tensor.view(torch.int32), tensor.view(4, 6), tensor.view(24), torch.zeros(6, 4, 1), torch.zeros(6, 5)]
    others += [torch.zeros(n, dtype=torch.uint8) for n in range(9)] + [torch.zeros(0, 3), torch.zeros(3, 0)]
    others += [torch.zeros(8).half(), torch.zeros(8).bfloat16()]
    assert len({digest(other) for other in [tensor, *others]}) == len(others) + 1


def test_only_the_values_of_a_view_count() -> None:
    base = drawn(60 * 50, torch.bfloat16).view(60, 50)
    for view in (base.T, base[:, 3:17], base[1::2], base[7, 1:], base.view(-1)[3:9], base.view(torch.uint8)[1:]):
        assert digest(view) == digest(view.contiguous().clone())


def test_seeds_count() -> None:
    tensor = drawn(100, torch.float32)
    others = [DeviceDigest(seeds, "cpu")(tensor) for seeds in [(1, 2), (2, 1), (1, 3), draw_seeds(), draw_seeds()]]
    assert len({digest(tensor), *others}) == 6
