"""Augmentation changes features, keeps their shape, and is a function of seed and index."""

from __future__ import annotations

import torch

from learner.model.augment import augment_features, warped
from speech.records import EncodedAudio, PromptLayout


def item(frames: int) -> EncodedAudio:
    features = torch.randn(frames, 64, generator=torch.Generator().manual_seed(frames))
    return EncodedAudio(PromptLayout((2,), 0, 1), None, None, 1.0, 0.5, features)


def test_same_seed_same_features_others_untouched() -> None:
    audio = {0: item(90), 1: item(33), 2: item(50)}
    first, again, other = (augment_features(audio, [0, 1], seed) for seed in (5, 5, 6))
    for index in (0, 1):
        assert torch.equal(first[index].features, again[index].features)
        assert not torch.equal(first[index].features, other[index].features)
        assert first[index].features.shape == audio[index].features.shape
    assert first[2] is audio[2]


def test_warp_keeps_ends_of_time_and_a_constant() -> None:
    generator = torch.Generator().manual_seed(1)
    ramp = torch.linspace(0, 1, 80)[:, None].expand(80, 64)
    bent = warped(ramp, generator)
    assert bent[0].allclose(torch.zeros(64), atol=1e-5) and bent[-1].allclose(torch.ones(64), atol=1e-5)
    assert bool((bent[1:] >= bent[:-1] - 1e-6).all()), "time does not run backwards"
    assert not bent.allclose(ramp, atol=1e-3)
