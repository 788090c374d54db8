"""What stands in the encoder's place for TTS: texts and prompt voices → prompts of a speech LM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from rollout.config import EncoderConfig
from rollout.encoders.encoder import LoadAudio
from rollout.encoders.recordings import RecordingEncoder, segment_of
from speech.codecs.base import Codec
from speech.errors import InputError, Problem, UserError
from speech.families.base import SpeechFamily
from speech.records import EncodedAudio, PromptLayout, Utterance

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
        sounds = self._recordings.sounds([segment for segment in (*voices, *targets) if segment is not None], problems)
        prepared: list[PreparedVoice] = []
        for utterance, voice, target in zip(utterances, voices, targets, strict=True):
            sound = None if voice is None else sounds.get(segment_of(voice))
            tokens = () if sound is None else tuple(sound.tokens.tolist())
            layout = self._layout(utterance, tokens, problems)
            speech = None if target is None else sounds.get(segment_of(target))
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
        text = utterance.prompt_text
        return replace(utterance, audio=utterance.prompt_audio, text=text, start=0.0, duration=None, channel=None)

    def _target(self, utterance: Utterance, problems: list[Problem]) -> Utterance | None:
        if not utterance.audio:
            problems.append(_problem(utterance, "audio", "missing: SFT needs a recording of the text"))
            return None
        return utterance

    def _layout(self, utterance: Utterance, tokens: Sequence[int], problems: list[Problem]) -> PromptLayout | None:
        try:
            return self._family.layout(utterance.instructed_text, utterance.prompt_text, tokens)
        except InputError as error:
            problems.extend(_problem(utterance, problem.key, problem.message) for problem in error.problems)
            return None


def _problem(utterance: Utterance, key: str | None, message: str) -> Problem:
    return Problem(file=f"utterance {utterance.id}", line=None, key=key, message=message)
