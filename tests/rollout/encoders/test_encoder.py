from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rollout.config import Dtype, EncoderConfig
from rollout.encoders.encoder import EncoderMode, UtteranceEncoder, length_batches
from rollout.errors import PublicationError
from speech.errors import InputError, Problem
from speech.families import ModelFamily, load_family
from speech.records import BadUtterance, EncodedAudio, Utterance
from speech.runtime.weights import WeightBucket
from tests.demo_checkpoint import write_demo_checkpoint
from tests.rollout.tiny_lm import FRAME, SAMPLE_RATE, TinyFamily
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

LENGTHS = [0.5, 0.2, 1.0, 0.2, 0.7]


def waves() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.uniform(-0.5, 0.5, int(s * SAMPLE_RATE)).astype(np.float32) for s in LENGTHS]


def utterances() -> list[Utterance]:
    return [Utterance(id=str(i), audio=f"{i}.wav", text="") for i in range(len(LENGTHS))]


def load_audio(utterance: Utterance, sample_rate: int) -> np.ndarray:
    if utterance.text == "bad":
        raise InputError("bad", [Problem(utterance.audio, None, None, "is no audio")])
    return waves()[int(utterance.id)]


def make(tmp_path: Path, batch_seconds: float, dtype: Dtype = "float32") -> UtteranceEncoder:
    config = EncoderConfig(batch_seconds=batch_seconds, dtype=dtype)
    return UtteranceEncoder(TinyFamily(tmp_path), config, load_audio)


def bucket(state: Mapping[str, torch.Tensor]) -> WeightBucket:
    return WeightBucket.of(dict(state))


def embeddings(item: EncodedAudio | BadUtterance) -> torch.Tensor:
    assert isinstance(item, EncodedAudio) and item.embeddings is not None
    return item.embeddings


def test_batches_give_the_same_as_singles_in_the_same_order(tmp_path: Path) -> None:
    batched = make(tmp_path, 100.0).encode(waves(), utterances())
    single = make(tmp_path, 0.1).encode(waves(), utterances())
    for one, other, wave in zip(batched, single, waves(), strict=True):
        assert embeddings(one).shape == (wave.shape[0] // FRAME, 64)
        torch.testing.assert_close(embeddings(one), embeddings(other), atol=1e-6, rtol=0)
        assert one.layout == other.layout
        assert one.layout.audio_length == embeddings(one).shape[0]
        assert one.seconds == wave.shape[0] / SAMPLE_RATE
        assert one.peak == pytest.approx(float(np.abs(wave).max()))
        assert one.encoder_states is None and one.features is None
        assert not embeddings(one).requires_grad


@pytest.mark.parametrize("write", [write_demo_checkpoint, write_checkpoint])
def test_half_precision_is_near(write: Callable[[Path], Path], tmp_path: Path) -> None:
    family = load_family(write(tmp_path / "model"))
    assert isinstance(family, ModelFamily)
    full, half = (
        UtteranceEncoder(family, EncoderConfig(dtype=dtype), load_audio).encode(waves(), utterances(), "states")
        for dtype in ("float32", "bfloat16")
    )
    for a, b in zip(full, half, strict=True):
        assert b.encoder_states is not None and b.encoder_states.dtype == embeddings(b).dtype == torch.bfloat16
        near = torch.nn.functional.cosine_similarity(embeddings(a).flatten(), embeddings(b).float().flatten(), dim=0)
        assert float(near) > 0.99


def test_every_utterance_is_encoded_and_counted_once(tmp_path: Path) -> None:
    encoder = make(tmp_path, 1.0)
    calls = []
    encoder._encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    encoder.encode(encoder.load(utterances()), utterances())
    assert sum(calls) == encoder.encoded_total == len(LENGTHS)
    encoder.encode(encoder.load(utterances()), utterances())
    assert encoder.encoded_total == 2 * len(LENGTHS)


def test_results_own_their_memory(tmp_path: Path) -> None:
    """A view would take its whole padded batch along into the object store."""
    for item in make(tmp_path, 100.0).encode(waves(), utterances(), "states"):
        assert item.encoder_states is not None
        for tensor in (embeddings(item), item.encoder_states):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_states_are_what_the_adaptor_maps_and_follow_its_updates(tmp_path: Path) -> None:
    encoder = make(tmp_path, 100.0)
    adaptor = TinyFamily(tmp_path).load_adaptor()
    with torch.no_grad():
        adaptor.weight.mul_(2.0)
    before = encoder.encode(waves(), utterances(), "states")
    encoder.update({"adaptor": bucket(adaptor.state_dict())})
    after = encoder.encode(waves(), utterances(), "states")
    for old, new in zip(before, after, strict=True):
        assert old.encoder_states is not None and new.encoder_states is not None
        assert torch.equal(old.encoder_states, new.encoder_states)
        torch.testing.assert_close(embeddings(new), adaptor(new.encoder_states), atol=1e-6, rtol=0)
        assert not torch.allclose(embeddings(old), embeddings(new))


def test_an_update_must_fit(tmp_path: Path) -> None:
    encoder = make(tmp_path, 100.0)
    with pytest.raises(RuntimeError, match=r"adaptor update: missing \['weight'\]"):
        encoder.update({"adaptor": bucket({"bias": torch.zeros(64)})})
    with pytest.raises(RuntimeError, match=r"unexpected \['other'\]"):
        state = {**TinyFamily(tmp_path).load_adaptor().state_dict(), "other": torch.zeros(1)}
        encoder.update({"adaptor": bucket(state)})


def test_a_tensor_that_arrived_changed_is_refused(tmp_path: Path) -> None:
    encoder = make(tmp_path, 100.0)
    sent = bucket(TinyFamily(tmp_path).load_adaptor().state_dict())
    sent.tensors["weight"].view(torch.int32)[3, 5] ^= 1
    with pytest.raises(PublicationError, match="adaptor tensor weight arrived changed"):
        encoder.update({"adaptor": sent})


def test_an_encoder_in_half_precision_holds_what_was_sent(tmp_path: Path) -> None:
    encoder = make(tmp_path, 100.0, dtype="bfloat16")
    encoder.update({"adaptor": bucket(TinyFamily(tmp_path).load_adaptor().state_dict())})


def test_features_alone_leave_the_encoder_to_the_learner(tmp_path: Path) -> None:
    encoder = make(tmp_path, 100.0)
    for item, wave in zip(encoder.encode(waves(), utterances(), "features"), waves(), strict=True):
        assert item.embeddings is None and item.features is not None
        assert item.features.shape == (wave.shape[0] // FRAME, FRAME)
        assert item.layout.audio_length == wave.shape[0] // FRAME
    assert encoder.encoded_total == 0


def test_unreadable_files_leave_the_others_their_results(tmp_path: Path) -> None:
    mixed = [replace(u, text="bad" if u.id in ("1", "3") else "") for u in utterances()]
    encoder = make(tmp_path, 1.0)
    found = encoder.encode(encoder.load(mixed), mixed)
    bad = [item for item in found if isinstance(item, BadUtterance)]
    assert bad == [BadUtterance("1", "1.wav: is no audio"), BadUtterance("3", "3.wav: is no audio")]
    assert found[1] is bad[0] and encoder.encoded_total == 3
    good = make(tmp_path, 0.1).encode(waves(), utterances())
    for i in (0, 2, 4):
        torch.testing.assert_close(embeddings(found[i]), embeddings(good[i]), atol=1e-6, rtol=0)


def test_silence_under_a_text_is_bad_and_silence_under_none_is_not(tmp_path: Path) -> None:
    encoder = make(tmp_path, 1.0)
    encoder._load_audio = lambda utterance, rate: np.full(3200, 5e-4, np.float32)
    speech, noise = (Utterance(id=text, audio="a.wav", text=text) for text in ("hello", "..."))
    silent, fine = encoder.load([speech, noise])
    assert silent == BadUtterance("hello", "a.wav: is silent, and its text is not empty")
    assert isinstance(fine, np.ndarray)


@pytest.mark.parametrize("mode", ["embeddings", "features"])
def test_one_utterance_that_the_model_fails_on_is_found(
    tmp_path: Path, mode: EncoderMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make(tmp_path, 100.0)
    features = encoder._encoder.features

    def fails_on_the_longest(wave: np.ndarray) -> torch.Tensor:
        if len(wave) == max(map(len, waves())):
            raise torch.OutOfMemoryError("tried to allocate 90 GiB\nmore advice")
        return features(wave)

    monkeypatch.setattr(encoder._encoder, "features", fails_on_the_longest)
    found = encoder.encode(waves(), utterances(), mode)
    assert [item for item in found if isinstance(item, BadUtterance)] == [
        BadUtterance("2", "OutOfMemoryError: more advice")
    ]
    assert sum(isinstance(item, EncodedAudio) for item in found) == 4


def test_what_fails_on_everything_is_not_the_utterances_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make(tmp_path, 100.0)

    def fails(wave: np.ndarray) -> torch.Tensor:
        raise TypeError("a mistake of the program")

    monkeypatch.setattr(encoder._encoder, "features", fails)
    with pytest.raises(TypeError, match="a mistake of the program"):
        encoder.encode(waves(), utterances())


def test_batches_hold_to_the_budget_with_padding() -> None:
    lengths = [5, 2, 10, 2, 7, 30]
    batches = list(length_batches(lengths, 12))
    assert batches == [[1, 3], [0], [4], [2], [5]]
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 12 for b in batches)
    assert list(length_batches([], 12)) == []
