"""What stands in the encoder's place for TTS: texts and prompt voices → prompts of a speech LM."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch

from rollout.config import EncoderConfig
from rollout.encoder import LoadAudio, length_batches
from speech.codecs.base import Codec
from speech.errors import InputError, Problem, UserError
from speech.families.base import SpeechFamily
from speech.records import EncodedAudio, PromptLayout, Utterance

VoiceMode: TypeAlias = Literal["prompt", "target"]
"""What is needed of an utterance: its prompt alone, or also the tokens of its own recording (SFT)."""

SILENCE_PEAK = 1e-3
"""A voice that nowhere rises above −60 dB of full scale is no voice."""

CACHE_TOKENS = 2**24
"""Codec ids kept at most, 64 MiB: about 90 hours at 50 a second."""

_Segment: TypeAlias = tuple[str, float, float | None]
"""File, start and duration in seconds."""


@dataclass(frozen=True, slots=True)
class PreparedVoice:
    """An utterance ready to be spoken.

    Attributes:
        encoded: the prompt in the form that engine and learner take, with no audio positions; `seconds`, `peak` and
            `voice_tokens` are the prompt voice's, whole even where the prompt holds a part of it.
        target_ids: ids of the reference response, stop token included; empty in mode `prompt`.
    """

    encoded: EncodedAudio
    target_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Sound:
    """Codec ids (int32) of a segment, with its length in seconds and its largest absolute sample."""

    tokens: np.ndarray
    seconds: float
    peak: float


class VoiceEncoder:
    """The codec's encoder, run once per distinct recording.

    Tokens are kept by file, start and duration, the least recently used going first, so that a voice that many
    prompts share, or a recording that comes again in a later epoch, costs nothing.

    Attributes:
        encoded_total: recordings that went through the codec since the start.
    """

    def __init__(self, family: SpeechFamily, codec: Codec, config: EncoderConfig, load_audio: LoadAudio) -> None:
        """Bind them to one another.

        Raises:
            UserError: the model does not speak this codec's tokens.
        """
        if codec.name != family.codec:
            raise UserError(f"{family.path} speaks the tokens of {family.codec!r}, not of the codec {codec.name!r}")
        if codec.size != len(family.speech_ids):
            raise UserError(f"{family.path} has {len(family.speech_ids)} speech tokens, {codec.path} has {codec.size}")
        self._family = family
        self._codec = codec
        self._batch_samples = config.batch_seconds * codec.sample_rate
        self._load_audio = load_audio
        self._hidden = int(family.config()["hidden_size"])
        self._cache: OrderedDict[_Segment, _Sound] = OrderedDict()
        self._cached_tokens = 0
        self.encoded_total = 0

    def encode(self, utterances: Sequence[Utterance], mode: VoiceMode = "prompt") -> list[PreparedVoice]:
        """Prompts of utterances, in their order.

        Recordings of another rate than the codec's are resampled by the loader.

        Raises:
            InputError: naming *every* utterance without a prompt voice, with a voice that cannot be read or is silent,
                with a text that the model cannot read, or (in mode `target`) without a recording.
        """
        problems: list[Problem] = []
        voices = [self._voice(utterance, problems) for utterance in utterances]
        targets = [self._target(utterance, problems) if mode == "target" else None for utterance in utterances]
        sounds = self._sounds([segment for segment in (*voices, *targets) if segment is not None], problems)
        prepared: list[PreparedVoice] = []
        for utterance, voice, target in zip(utterances, voices, targets, strict=True):
            sound = None if voice is None else sounds.get(_key(voice))
            tokens = () if sound is None else tuple(sound.tokens.tolist())
            layout = self._layout(utterance, tokens, problems)
            speech = None if target is None else sounds.get(_key(target))
            if layout is None or sound is None or (mode == "target" and speech is None):
                continue  # there is a problem that says why
            nothing = torch.zeros(0, self._hidden)
            encoded = EncodedAudio(layout, nothing, None, sound.seconds, sound.peak, voice_tokens=tokens)
            target_ids = () if speech is None else tuple(self._family.target_ids(speech.tokens.tolist()))
            prepared.append(PreparedVoice(encoded, target_ids))
        if problems:
            raise InputError("utterances that cannot be spoken", list(dict.fromkeys(problems)))
        return prepared

    def _voice(self, utterance: Utterance, problems: list[Problem]) -> Utterance | None:
        if utterance.prompt_audio is None:
            # Not left to chance: without a voice each sample of a group would be spoken by another one (PAPER §6).
            problems.append(_problem(utterance, "prompt_audio", "missing: speech needs a prompt voice"))
            return None
        return replace(utterance, audio=utterance.prompt_audio, start=0.0, duration=None)

    def _target(self, utterance: Utterance, problems: list[Problem]) -> Utterance | None:
        if not utterance.audio:
            problems.append(_problem(utterance, "audio", "missing: SFT needs a recording of the text"))
            return None
        return utterance

    def _layout(self, utterance: Utterance, tokens: Sequence[int], problems: list[Problem]) -> PromptLayout | None:
        try:
            return self._family.layout(utterance.text, utterance.prompt_text, tokens)
        except InputError as error:
            problems.extend(_problem(utterance, problem.key, problem.message) for problem in error.problems)
            return None

    def _sounds(self, segments: Sequence[Utterance], problems: list[Problem]) -> dict[_Segment, _Sound]:
        """Each distinct recording, from the cache or through the codec; those that fail are missing."""
        wanted = {_key(segment): segment for segment in segments}
        sounds: dict[_Segment, _Sound] = {}
        fresh: list[tuple[_Segment, np.ndarray]] = []
        for key, segment in wanted.items():
            if key in self._cache:
                self._cache.move_to_end(key)
                sounds[key] = self._cache[key]
                continue
            try:
                wave = self._load_audio(segment, self._codec.sample_rate)
            except InputError as error:
                problems.extend(error.problems)
                continue
            if float(np.abs(wave).max(initial=0.0)) < SILENCE_PEAK:
                problems.append(Problem(segment.audio, None, None, "is silent: there is no voice to encode"))
                continue
            fresh.append((key, wave))
        for batch in length_batches([wave.shape[0] for _, wave in fresh], self._batch_samples):
            for i, tokens in zip(batch, self._codec.encode([fresh[i][1] for i in batch]), strict=True):
                key, wave = fresh[i]
                if not tokens:
                    problems.append(Problem(key[0], None, None, "is too short: the codec makes no token of it"))
                    continue
                sounds[key] = _Sound(
                    np.asarray(tokens, dtype=np.int32),
                    wave.shape[0] / self._codec.sample_rate,
                    float(np.abs(wave).max()),
                )
                self._keep(key, sounds[key])
        self.encoded_total += len(fresh)
        return sounds

    def _keep(self, key: _Segment, sound: _Sound) -> None:
        self._cache[key] = sound
        self._cached_tokens += len(sound.tokens)
        while self._cached_tokens > CACHE_TOKENS and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_tokens -= len(oldest.tokens)


def _key(segment: Utterance) -> _Segment:
    return segment.audio, segment.start, segment.duration


def _problem(utterance: Utterance, key: str | None, message: str) -> Problem:
    return Problem(file=f"utterance {utterance.id}", line=None, key=key, message=message)
