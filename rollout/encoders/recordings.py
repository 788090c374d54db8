"""Recordings → codec tokens, each distinct recording once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rollout.config import EncoderConfig
from rollout.encoders.encoder import SILENCE_PEAK, LoadAudio, length_batches
from rollout.encoders.isolation import isolate
from speech.codecs.base import Codec
from speech.errors import InputError, Problem
from speech.records import BadUtterance, Utterance

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

    def tokenise(self, utterances: Sequence[Utterance]) -> list[tuple[int, ...] | BadUtterance]:
        """Codec ids of utterances' own recordings, in their order, or what is wrong with them: there is no recording,
        it is silent, too short, cannot be read, or the codec fails on it.

        Raises:
            Exception: all of several fail, and not because of their data.
        """
        sounds = self.sounds([utterance for utterance in utterances if utterance.audio])
        results: list[tuple[int, ...] | BadUtterance] = []
        for utterance in utterances:
            sound = sounds[segment_of(utterance)] if utterance.audio else "audio: missing: there is no recording"
            results.append(
                BadUtterance(utterance.id, sound) if isinstance(sound, str) else tuple(sound.tokens.tolist())
            )
        return results

    def sounds(self, segments: Sequence[Utterance]) -> dict[Segment, CodedSound | str]:
        """Each distinct recording, from the cache or through the codec, or why there is none.

        Raises:
            Exception: all of several fail, and not because of their data.
        """
        wanted = {segment_of(segment): segment for segment in segments}
        sounds: dict[Segment, CodedSound | str] = {}
        missing: list[Utterance] = []
        for key, segment in wanted.items():
            if key in self._cache:
                self._cache.move_to_end(key)
                sounds[key] = self._cache[key]
            else:
                missing.append(segment)
        fresh: list[tuple[Utterance, np.ndarray]] = []
        waves = isolate(lambda part: [self._load(segment) for segment in part], missing, missing)
        for segment, wave in zip(missing, waves, strict=True):
            if isinstance(wave, BadUtterance):
                sounds[segment_of(segment)] = wave.reason
            else:
                fresh.append((segment, wave))
        for batch in length_batches([wave.shape[0] for _, wave in fresh], self._batch_samples):
            items = [fresh[i] for i in batch]
            for (segment, _), coded in zip(items, isolate(self._code, items, [s for s, _ in items]), strict=True):
                key = segment_of(segment)
                if isinstance(coded, BadUtterance):
                    sounds[key] = coded.reason
                else:
                    sounds[key] = coded
                    self._keep(key, coded)
        self.encoded_total += len(fresh)
        return sounds

    def _load(self, segment: Utterance) -> np.ndarray:
        wave = self._load_audio(segment, self.codec.sample_rate)
        if float(np.abs(wave).max(initial=0.0)) < SILENCE_PEAK:
            raise _bad(segment, "is silent: there is no voice to encode")
        return wave

    def _code(self, items: Sequence[tuple[Utterance, np.ndarray]]) -> list[CodedSound]:
        coded = []
        for (segment, wave), tokens in zip(items, self.codec.encode([wave for _, wave in items]), strict=True):
            if not tokens:
                raise _bad(segment, "is too short: the codec makes no token of it")
            seconds = wave.shape[0] / self.codec.sample_rate
            coded.append(CodedSound(np.asarray(tokens, dtype=np.int32), seconds, float(np.abs(wave).max())))
        return coded

    def _keep(self, key: Segment, sound: CodedSound) -> None:
        self._cache[key] = sound
        self._cached_tokens += len(sound.tokens)
        while self._cached_tokens > CACHE_TOKENS and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_tokens -= len(oldest.tokens)


def _bad(segment: Utterance, message: str) -> InputError:
    return InputError("cannot encode", [Problem(segment.audio, None, None, message)])


def segment_of(utterance: Utterance) -> Segment:
    """What tells an utterance's recording from others."""
    return utterance.audio, utterance.start, utterance.duration, utterance.channel
