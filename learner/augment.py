"""SpecAugment (Park et al., 2019): masked bands of time and frequency, for training an encoder from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from speech.records import EncodedAudio

TIME_MASKS, TIME_SHARE = 2, 0.08
FREQUENCY_MASKS, FREQUENCY_SHARE = 2, 0.15


def spec_augment(audio: Mapping[int, EncodedAudio], used: Iterable[int], seed: int) -> dict[int, EncodedAudio]:
    """Copies of the items `used`, with bands of their features set to 0 (the features' mean).

    The generator depends on `seed` and the item's index alone, so that a resumed run masks the same bands.
    """
    augmented = dict(audio)
    for index in set(used):
        item = audio[index]
        if item.features is None:
            raise ValueError("augmentation needs features: it applies only when the learner trains the encoder")
        generator = torch.Generator().manual_seed(seed * 4099 + index)
        features = item.features.clone()
        frames, bins = features.shape
        for _ in range(TIME_MASKS):
            start, width = _band(frames, TIME_SHARE, generator)
            features[start : start + width] = 0
        for _ in range(FREQUENCY_MASKS):
            start, width = _band(bins, FREQUENCY_SHARE, generator)
            features[:, start : start + width] = 0
        augmented[index] = replace(item, features=features)
    return augmented


def _band(size: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    width = int(torch.rand((), generator=generator) * share * size)
    start = int(torch.rand((), generator=generator) * (size - width))
    return start, width
