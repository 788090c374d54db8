"""Audio encoder and adaptor: waveforms → prompt embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch

from rollout.config import EncoderConfig
from speech.errors import InputError, Problem
from speech.families.base import ModelFamily
from speech.records import EncodedAudio, Utterance

LoadAudio: TypeAlias = Callable[[Utterance, int], np.ndarray]
"""(utterance, sample rate in Hz) → float32 mono waveform (samples,); raises `InputError`."""


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

    def load(self, utterances: Sequence[Utterance]) -> list[np.ndarray]:
        """Read the audio of all utterances.

        Raises:
            InputError: naming *every* utterance that could not be read.
        """
        waves: list[np.ndarray] = []
        problems: list[Problem] = []
        for utterance in utterances:
            try:
                waves.append(self._load_audio(utterance, self._family.sample_rate))
            except InputError as error:
                problems.extend(error.problems)
        if problems:
            raise InputError("audio that cannot be read", problems)
        return waves

    @torch.no_grad()
    def encode(
        self, waves: Sequence[np.ndarray], utterances: Sequence[Utterance], mode: EncoderMode = "embeddings"
    ) -> list[EncodedAudio]:
        """Encode waveforms, batched by length.

        In mode `features` nothing is encoded: a learner that trains the encoder runs it itself.

        Args:
            waves: float32 mono (samples,) at the family's sample rate, one per utterance.
            mode: what the results hold.

        Returns:
            In the order of the arguments, on the CPU.
        """
        if mode == "features":
            return [self._features(wave, u) for wave, u in zip(waves, utterances, strict=True)]
        encoded: dict[int, EncodedAudio] = {}
        for batch in length_batches([wave.shape[0] for wave in waves], self._batch_samples):
            features = [self._encoder.features(waves[i]).to(self._device, self._dtype) for i in batch]
            for i, states in zip(batch, self._encoder(features), strict=True):
                encoded[i] = self._complete(waves[i], utterances[i], states, mode)
        self.encoded_total += len(utterances)
        return [encoded[i] for i in range(len(utterances))]

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

    def update(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Replace the weights of `encoder` and `adaptor`, whichever are given, by the learner's.

        Raises:
            RuntimeError: a name or shape does not fit (from `load_state_dict`).
        """
        modules = {"encoder": self._encoder, "adaptor": self._adaptor}
        for part, state in states.items():
            # Buffers are not sent; every parameter must be.
            result = modules[part].load_state_dict(state, strict=False)
            missing = set(result.missing_keys) & dict(modules[part].named_parameters()).keys()
            if missing or result.unexpected_keys:
                raise RuntimeError(f"{part} update: missing {sorted(missing)}, unexpected {result.unexpected_keys}")


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
