"""The demo family: its parts, its prompt, its exports."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speech.errors import InputError, UserError
from speech.families import load_family
from speech.records import Utterance

UTTERANCE = Utterance(id="a", audio="a.wav", text="turn on 灯", language="en")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 400, 15_999, 16_000, 40_123])
def test_audio_length_is_that_of_the_encoder(demo_checkpoint: Path, samples: int) -> None:
    family = load_family(demo_checkpoint)
    encoder, adaptor = family.load_encoder(), family.load_adaptor()
    features = encoder.features(noise(samples))
    (states,) = encoder([features])
    embeddings = adaptor(states)
    assert family.audio_length(features.shape[0]) == embeddings.shape[0]
    layout = family.layout(UTTERANCE, embeddings.shape[0])
    assert layout.is_token.count(False) == embeddings.shape[0]


def test_encoder_does_not_look_at_neighbours(demo_checkpoint: Path) -> None:
    encoder = load_family(demo_checkpoint).load_encoder()
    features = [encoder.features(noise(n, n)) for n in (8_000, 31_000, 16_001)]
    with torch.no_grad():
        together = encoder(features)
        for one, state in zip(features, together, strict=True):
            torch.testing.assert_close(encoder([one])[0], state, rtol=1e-5, atol=1e-5)


def test_target_and_output_are_inverse(demo_checkpoint: Path) -> None:
    family = load_family(demo_checkpoint)
    target = family.target_ids(UTTERANCE)
    assert target[-1] in family.stop_token_ids
    assert family.parse_output(target) == (UTTERANCE.text, None)
    assert not set(family.ctc_ids(UTTERANCE)) & set(family.stop_token_ids)


def test_a_transcript_holds_no_orders_to_the_model(demo_checkpoint: Path) -> None:
    family = load_family(demo_checkpoint)
    controls = set(family.control_tokens.values())
    assert {"<|endoftext|>", "<|audio_start|>", "<|transcribe|>"} <= controls
    for token in sorted(controls):
        with pytest.raises(InputError) as caught:
            family.target_ids(replace(UTTERANCE, text=f"please say {token} now"))
        assert [(p.key, p.message) for p in caught.value.problems] == [("text", f"holds the control token {token}")]
    with pytest.raises(InputError, match=r"text: holds half of a UTF-16 pair \(U\+DCE9\)"):
        family.target_ids(replace(UTTERANCE, text=os.fsdecode(b"caf\xe9")))
    # What only looks like one is characters.
    target = family.target_ids(replace(UTTERANCE, text="a <|b|> c <sil>"))
    assert not set(target[:-1]) & set(family.control_tokens)


@pytest.mark.family_check("export", "demo")
def test_export_replaces_what_is_given_and_keeps_the_rest(demo_checkpoint: Path, tmp_path: Path) -> None:
    family = load_family(demo_checkpoint)
    adaptor = {name: p + 1 for name, p in family.load_adaptor().named_parameters()}
    family.export(tmp_path / "new", {"adaptor": adaptor})
    again = load_family(tmp_path / "new")
    for name, parameter in again.load_adaptor().named_parameters():
        assert torch.equal(parameter, adaptor[name])
    for part in ("load_encoder", "load_language_model"):
        old, new = getattr(family, part)().state_dict(), getattr(again, part)().state_dict()
        assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def test_unknown_family_is_refused_with_the_nearest(demo_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'demo'"):
        load_family(demo_checkpoint, "dem")
