"""What stands in the encoder's place for TTS: texts and prompt voices → prompts of a speech LM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from rollout.config import EncoderConfig
from rollout.encoders.encoder import LoadAudio
from rollout.encoders.isolation import isolate
from rollout.encoders.recordings import CodedSound, RecordingEncoder, Segment, segment_of
from speech.codecs.base import Codec
from speech.errors import InputError, Problem, UserError
from speech.families.base import SpeechFamily
from speech.records import BadUtterance, EncodedAudio, Utterance

VoiceMode: TypeAlias = Literal["prompt", "target"]
"""What is needed of an utterance: its prompt alone, or also the tokens of its own recording (SFT)."""


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


class VoiceEncoder:
    """Texts and voices → prompts, with each distinct recording encoded once (`RecordingEncoder`)."""

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
        self._recordings = RecordingEncoder(codec, config, load_audio)
        self._hidden = int(family.config()["hidden_size"])

    @property
    def encoded_total(self) -> int:
        """Recordings that went through the codec since the start."""
        return self._recordings.encoded_total

    def encode(self, utterances: Sequence[Utterance], mode: VoiceMode = "prompt") -> list[PreparedVoice | BadUtterance]:
        """Prompts of utterances, in their order, or what is wrong with them: there is no prompt voice, it cannot be
        read or is silent, the model cannot read the text, or (in mode `target`) there is no recording.

        Recordings of another rate than the codec's are resampled by the loader.

        Raises:
            Exception: all of several fail, and not because of their data.
        """
        voices = [_voice(utterance) for utterance in utterances]
        targets = [u if mode == "target" and u.audio else None for u in utterances]
        sounds = self._recordings.sounds([segment for segment in (*voices, *targets) if segment is not None])
        return isolate(lambda part: [self._prepare(u, sounds, mode) for u in part], utterances, utterances)

    def _prepare(
        self, utterance: Utterance, sounds: Mapping[Segment, CodedSound | str], mode: VoiceMode
    ) -> PreparedVoice:
        """Raises InputError with all that is wrong with an utterance."""
        problems: list[Problem] = []
        voice = _voice(utterance)
        # Not left to chance: without a voice each sample of a group would be spoken by another one (PAPER §6).
        sound = "missing: speech needs a prompt voice" if voice is None else sounds[segment_of(voice)]
        if isinstance(sound, str):
            problems.append(_problem("prompt_audio", sound))
        tokens = () if isinstance(sound, str) else tuple(sound.tokens.tolist())
        try:
            layout = self._family.layout(utterance.instructed_text, utterance.prompt_text, tokens)
        except InputError as error:
            problems += [_problem(problem.key or "text", problem.message) for problem in error.problems]
        speech: CodedSound | str | None = None
        if mode == "target":
            missing = "missing: SFT needs a recording of the text"
            speech = sounds[segment_of(utterance)] if utterance.audio else missing
            if isinstance(speech, str):
                problems.append(_problem("audio", speech))
        if problems or isinstance(sound, str) or isinstance(speech, str):
            raise InputError("an utterance that cannot be spoken", problems)
        nothing = torch.zeros(0, self._hidden)
        encoded = EncodedAudio(layout, nothing, None, sound.seconds, sound.peak, voice_tokens=tokens)
        target_ids = () if speech is None else tuple(self._family.target_ids(speech.tokens.tolist()))
        return PreparedVoice(encoded, target_ids)


def _voice(utterance: Utterance) -> Utterance | None:
    if utterance.prompt_audio is None:
        return None
    text = utterance.prompt_text
    return replace(utterance, audio=utterance.prompt_audio, text=text, start=0.0, duration=None, channel=None)


def _problem(key: str, message: str) -> Problem:
    return Problem(file=key, line=None, key=None, message=message)
