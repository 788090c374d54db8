"""Recordings → codec tokens, each distinct recording once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rollout.config import EncoderConfig
from rollout.encoders.encoder import LoadAudio, length_batches
from speech.codecs.base import Codec
from speech.errors import InputError, Problem
from speech.records import Utterance

SILENCE_PEAK = 1e-3
"""A voice that nowhere rises above −60 dB of full scale is no voice."""

CACHE_TOKENS = 2**24
"""Codec ids kept at most, 64 MiB: about 90 hours at 50 a second."""

Segment: TypeAlias = tuple[str, float, float | None, int | None]
"""File, start and duration in seconds, channel."""


@dataclass(frozen=True, slots=True)
class CodedSound:
    """Codec ids (int32) of a segment, with its length in seconds and its largest absolute sample."""

    tokens: np.ndarray
    seconds: float
    peak: float


class RecordingEncoder:
    """The codec's encoder, run once per distinct recording.

    Tokens are kept by file, start, duration and channel, the least recently used going first, so that a voice that many
    prompts share, or a recording that comes again in a later epoch, costs nothing.

    Attributes:
        codec: whose tokens they are.
        encoded_total: recordings that went through the codec since the start.
    """

    def __init__(self, codec: Codec, config: EncoderConfig, load_audio: LoadAudio) -> None:
        self.codec = codec
        self._batch_samples = config.batch_seconds * codec.sample_rate
        self._load_audio = load_audio
        self._cache: OrderedDict[Segment, CodedSound] = OrderedDict()
        self._cached_tokens = 0
        self.encoded_total = 0

    def tokenise(self, utterances: Sequence[Utterance]) -> list[tuple[int, ...]]:
        """Codec ids of utterances' own recordings, in their order.

        Raises:
            InputError: naming *every* utterance without a recording, or whose recording is silent, too short or cannot
                be read.
        """
        problems = [
            Problem(f"utterance {utterance.id}", None, "audio", "missing: there is no recording to encode")
            for utterance in utterances
            if not utterance.audio
        ]
        sounds = self.sounds([utterance for utterance in utterances if utterance.audio], problems)
        if problems:
            raise InputError("utterances that cannot be encoded", list(dict.fromkeys(problems)))
        return [tuple(sounds[segment_of(utterance)].tokens.tolist()) for utterance in utterances]

    def sounds(self, segments: Sequence[Utterance], problems: list[Problem]) -> dict[Segment, CodedSound]:
        """Each distinct recording, from the cache or through the codec; those that fail are missing."""
        wanted = {segment_of(segment): segment for segment in segments}
        sounds: dict[Segment, CodedSound] = {}
        fresh: list[tuple[Segment, np.ndarray]] = []
        for key, segment in wanted.items():
            if key in self._cache:
                self._cache.move_to_end(key)
                sounds[key] = self._cache[key]
                continue
            try:
                wave = self._load_audio(segment, self.codec.sample_rate)
            except InputError as error:
                problems.extend(error.problems)
                continue
            if float(np.abs(wave).max(initial=0.0)) < SILENCE_PEAK:
                problems.append(Problem(segment.audio, None, None, "is silent: there is no voice to encode"))
                continue
            fresh.append((key, wave))
        for batch in length_batches([wave.shape[0] for _, wave in fresh], self._batch_samples):
            for i, tokens in zip(batch, self.codec.encode([fresh[i][1] for i in batch]), strict=True):
                key, wave = fresh[i]
                if not tokens:
                    problems.append(Problem(key[0], None, None, "is too short: the codec makes no token of it"))
                    continue
                sounds[key] = CodedSound(
                    np.asarray(tokens, dtype=np.int32),
                    wave.shape[0] / self.codec.sample_rate,
                    float(np.abs(wave).max()),
                )
                self._keep(key, sounds[key])
        self.encoded_total += len(fresh)
        return sounds

    def _keep(self, key: Segment, sound: CodedSound) -> None:
        self._cache[key] = sound
        self._cached_tokens += len(sound.tokens)
        while self._cached_tokens > CACHE_TOKENS and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_tokens -= len(oldest.tokens)


def segment_of(utterance: Utterance) -> Segment:
    """What tells an utterance's recording from others."""
    return utterance.audio, utterance.start, utterance.duration, utterance.channel
