"""Audio encoder and adaptor: waveforms → prompt embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch

from rollout.config import EncoderConfig
from rollout.encoders.isolation import isolate
from rollout.errors import PublicationError
from speech.errors import InputError, Problem
from speech.families.base import ModelFamily
from speech.records import BadUtterance, EncodedAudio, Utterance
from speech.runtime.weights import WeightBucket, tensor_digest
from speech.text import normalise

LoadAudio: TypeAlias = Callable[[Utterance, int], np.ndarray]
"""(utterance, sample rate in Hz) → float32 mono waveform (samples,); raises `InputError`."""

SILENCE_PEAK = 1e-3
"""A voice that nowhere rises above −60 dB of full scale is no voice."""

EncoderMode: TypeAlias = Literal["embeddings", "states", "features"]
"""What the learner needs beside the prompt: nothing but embeddings (all before the language model is frozen), also
the adaptor's inputs (it learns the adaptor), or only features (it learns the encoder, SFT)."""


class UtteranceEncoder:
    """Encoder and adaptor of a model family, run once per utterance and step.

    Attributes:
        encoded_total: utterances encoded since the start; a step that encodes each of its utterances once
            raises it by exactly their number.
    """

    def __init__(
        self,
        family: ModelFamily,
        config: EncoderConfig,
        load_audio: LoadAudio,
        device: torch.device | str = "cpu",
    ) -> None:
        """Load both modules and freeze them."""
        self._family = family
        self._batch_samples = config.batch_seconds * family.sample_rate
        self._load_audio = load_audio
        self._device = torch.device(device)
        self._dtype = getattr(torch, config.dtype)
        self._encoder = family.load_encoder(self._dtype).to(self._device).eval().requires_grad_(False)
        self._adaptor = family.load_adaptor(self._dtype).to(self._device).eval().requires_grad_(False)
        self.encoded_total = 0

    def load(self, utterances: Sequence[Utterance]) -> list[np.ndarray | BadUtterance]:
        """The audio of each utterance, or what is wrong with it: it cannot be read, or it is silent under a text.

        Raises:
            Exception: all fail, and not because of their data.
        """
        return isolate(lambda part: [self._load(utterance) for utterance in part], utterances, utterances)

    def _load(self, utterance: Utterance) -> np.ndarray:
        wave = self._load_audio(utterance, self._family.sample_rate)
        if float(np.abs(wave).max(initial=0.0)) < SILENCE_PEAK and normalise(utterance.text, utterance.language):
            raise InputError("silence", [Problem(utterance.audio, None, None, "is silent, and its text is not empty")])
        return wave

    @torch.no_grad()
    def encode(
        self,
        waves: Sequence[np.ndarray | BadUtterance],
        utterances: Sequence[Utterance],
        mode: EncoderMode = "embeddings",
    ) -> list[EncodedAudio | BadUtterance]:
        """Encode waveforms, batched by length.

        In mode `features` nothing is encoded: a learner that trains the encoder runs it itself.

        Args:
            waves: float32 mono (samples,) at the family's sample rate, one per utterance. A bad utterance stays one.
            mode: what the results hold.

        Returns:
            In the order of the arguments, on the CPU.

        Raises:
            Exception: a batch of several fails whole, and not because of its data.
        """
        results: dict[int, EncodedAudio | BadUtterance] = {}
        sound: dict[int, np.ndarray] = {}
        for i, wave in enumerate(waves):
            if isinstance(wave, BadUtterance):
                results[i] = wave
            else:
                sound[i] = wave
        places = list(sound)
        whole = [list(range(len(places)))] if mode == "features" else self._batches(list(sound.values()))
        for batch in whole:
            part = [places[i] for i in batch]
            items = [(sound[i], utterances[i]) for i in part]
            found = isolate(lambda some: self._encode(some, mode), items, [utterances[i] for i in part])
            results.update(zip(part, found, strict=True))
        if mode != "features":
            self.encoded_total += sum(not isinstance(result, BadUtterance) for result in results.values())
        return [results[i] for i in range(len(waves))]

    def _batches(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        return list(length_batches([wave.shape[0] for wave in waves], self._batch_samples))

    def _encode(self, items: Sequence[tuple[np.ndarray, Utterance]], mode: EncoderMode) -> list[EncodedAudio]:
        if mode == "features":
            return [self._features(wave, utterance) for wave, utterance in items]
        features = [self._encoder.features(wave).to(self._device, self._dtype) for wave, _ in items]
        return [
            self._complete(wave, utterance, states, mode)
            for (wave, utterance), states in zip(items, self._encoder(features), strict=True)
        ]

    def _complete(
        self, wave: np.ndarray, utterance: Utterance, states: torch.Tensor, mode: EncoderMode
    ) -> EncodedAudio:
        embeddings = self._adaptor(states)
        return EncodedAudio(
            layout=self._family.layout(utterance, embeddings.shape[0]),
            embeddings=_own(embeddings),
            encoder_states=_own(states) if mode == "states" else None,
            seconds=wave.shape[0] / self._family.sample_rate,
            peak=float(np.abs(wave).max(initial=0.0)),
        )

    def _features(self, wave: np.ndarray, utterance: Utterance) -> EncodedAudio:
        features = self._encoder.features(wave)
        return EncodedAudio(
            layout=self._family.layout(utterance, self._family.audio_length(features.shape[0])),
            embeddings=None,
            encoder_states=None,
            seconds=wave.shape[0] / self._family.sample_rate,
            peak=float(np.abs(wave).max(initial=0.0)),
            features=features,
            ctc_ids=tuple(self._family.ctc_ids(utterance)),
        )

    def update(self, weights: Mapping[str, WeightBucket]) -> None:
        """Replace the weights of `encoder` and `adaptor`, whichever are given, by the learner's.

        Raises:
            PublicationError: a tensor arrived changed, or the module does not hold it afterwards.
            RuntimeError: a name or shape does not fit (also from `load_state_dict`).
        """
        modules = {"encoder": self._encoder, "adaptor": self._adaptor}
        for part, bucket in weights.items():
            for name, tensor in bucket.tensors.items():
                if tensor_digest(tensor) != bucket.digests.get(name):
                    raise PublicationError(
                        f"{part} tensor {name} arrived changed: its digest differs from the sender's"
                    )
            # Buffers are not sent; every parameter must be.
            result = modules[part].load_state_dict(dict(bucket.tensors), strict=False)
            held = dict(modules[part].named_parameters())
            missing = set(result.missing_keys) & held.keys()
            if missing or result.unexpected_keys:
                raise RuntimeError(f"{part} update: missing {sorted(missing)}, unexpected {result.unexpected_keys}")
            for name, tensor in bucket.tensors.items():
                if tensor_digest(held[name]) != tensor_digest(tensor.to(held[name].dtype)):
                    raise PublicationError(f"{part} parameter {name} does not hold the tensor that was sent")


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor with storage of its own: a view would take its whole padded batch along when serialised."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def length_batches(lengths: Sequence[int], budget: float) -> Iterator[list[int]]:
    """Indices sorted by length, cut so that count x longest ≤ budget (an item over the budget goes alone).

    Ties keep their order, so that the same list always gives the same batches.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
