"""Augmentation of log-mel features, for training an encoder from scratch: unlike voices, noises and gaps.

SpecAugment's masks and time warp (Park et al., 2019), vocal tract length perturbation (Jaitly and Hinton, 2013) as a
warp of the frequency axis, and additive noise. All keep the number of frames, on which the prompt's layout depends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from speech.records import EncodedAudio

TIME_MASKS, TIME_SHARE = 2, 0.1
FREQUENCY_MASKS, FREQUENCY_SHARE = 2, 0.2
TIME_WARP = 0.08
"""Furthest that the middle of the utterance moves, as a share of its length."""
FREQUENCY_WARP = 0.12
"""Largest stretch of the frequency axis: about the span from a low male to a high female voice."""
NOISE = 0.5
"""Largest standard deviation of the noise, in standard deviations of the features."""


def augment_features(audio: Mapping[int, EncodedAudio], used: Iterable[int], seed: int) -> dict[int, EncodedAudio]:
    """Copies of the items `used` with their features changed at random.

    The generator depends on `seed` and the item's index alone, so that a resumed run draws the same.
    """
    augmented = dict(audio)
    for index in set(used):
        item = audio[index]
        if item.features is None:
            raise ValueError("augmentation needs features: it applies only when the learner trains the encoder")
        generator = torch.Generator().manual_seed(seed * 4099 + index)
        features = warped(item.features, generator)
        noise = torch.randn(features.shape, generator=generator)
        features = features + noise * (NOISE * _uniform(generator))
        frames, bins = features.shape
        for _ in range(TIME_MASKS):
            start, width = _band(frames, TIME_SHARE, generator)
            features[start : start + width] = 0
        for _ in range(FREQUENCY_MASKS):
            start, width = _band(bins, FREQUENCY_SHARE, generator)
            features[:, start : start + width] = 0
        augmented[index] = replace(item, features=features)
    return augmented


def warped(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(frames, bins) read along bent axes: time moves around its middle, frequency is stretched or squeezed."""
    frames, bins = features.shape
    middle = 0.5 + TIME_WARP * (2 * _uniform(generator) - 1)
    time = torch.linspace(0, 1, frames)
    time = torch.where(time < middle, time * (0.5 / middle), 0.5 + (time - middle) * (0.5 / (1 - middle)))
    stretch = 1 + FREQUENCY_WARP * (2 * _uniform(generator) - 1)
    frequency = (torch.linspace(0, 1, bins) * stretch).clamp(0, 1)
    grid = torch.stack(torch.meshgrid(time * 2 - 1, frequency * 2 - 1, indexing="ij"), dim=-1).flip(-1)
    return torch.nn.functional.grid_sample(features[None, None], grid[None], align_corners=True)[0, 0]


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _band(size: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    width = int(_uniform(generator) * share * size)
    start = int(_uniform(generator) * (size - width))
    return start, width
