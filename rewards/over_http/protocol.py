"""What a reward server is sent and what it answers, as JSON: docs/http-rewards.md."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import soundfile

from rewards.listening.group import Sound, SoundGroup
from rewards.listening.judge import Wave
from rewards.registry import PartScore
from speech.records import Group, Prompt, PromptLayout, Trajectory, Utterance
from speech.runtime.schema import bind

PROTOCOL = 1


class WrongMessageError(ValueError):
    """A message is not of the protocol; says all that is wrong."""


@dataclass
class PromptMessage:
    """What the samples of a group share: `Prompt`, `Utterance` and `Group` without what only a run knows."""

    id: str
    utterance: str
    text: str
    language: str | None = None
    speaker: str | None = None
    keywords: list[str] = field(default_factory=list)
    instruction: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    prompt_text: str = ""
    seconds: float = 0.0
    peak: float = 0.0
    past_lengths: list[int] = field(default_factory=list)
    voice: str | None = None
    """Base64 of a WAV file: the prompt voice."""


@dataclass
class SampleMessage:
    """`Trajectory`, and with `audio` its sound."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    language: str | None = None
    token_ids: list[int] = field(default_factory=list)
    speech_tokens: list[int] = field(default_factory=list)
    token_rate: float | None = None
    """Speech tokens per second; only with `audio`."""
    audio: str | None = None
    """Base64 of a WAV file."""


@dataclass
class RequestMessage:
    protocol: int
    prompt: PromptMessage
    samples: list[SampleMessage]


def text_request(group: Group) -> RequestMessage:
    """A group without its sound."""
    prompt, utterance = group.prompt, group.prompt.utterance
    return RequestMessage(
        PROTOCOL,
        PromptMessage(
            id=prompt.id,
            utterance=utterance.id,
            text=utterance.text,
            language=utterance.language,
            speaker=utterance.speaker,
            keywords=list(utterance.keywords),
            instruction=utterance.instruction,
            attributes=dict(utterance.attributes),
            prompt_text=utterance.prompt_text,
            seconds=group.seconds,
            peak=group.peak,
            past_lengths=list(group.past_lengths),
        ),
        [
            SampleMessage(
                index=t.index,
                text=t.text,
                finish_reason=t.finish_reason,
                language=t.language,
                token_ids=list(t.token_ids),
                speech_tokens=list(t.speech_tokens),
            )
            for t in group.trajectories
        ],
    )


def sound_request(group: SoundGroup, voice: bool) -> tuple[RequestMessage, list[int]]:
    """A group with its sound.

    Args:
        voice: with the prompt voice, where it has one that could be decoded.

    Returns:
        The request, and the places of its samples in the group: what could not be decoded is not sent.
    """
    request = text_request(group.group)
    kept = {place: sound for place, sound in enumerate(group.sounds) if isinstance(sound, Sound)}
    request.samples = [
        dataclasses.replace(request.samples[place], audio=_wav(sound), token_rate=sound.token_rate)
        for place, sound in kept.items()
    ]
    if voice and isinstance(spoken := group.voice, Sound):
        request.prompt.voice = _wav(spoken)
    return request, list(kept)


def read_request(data: Any) -> RequestMessage:
    """A request from plain JSON data.

    Raises:
        WrongMessageError: unknown or missing keys, wrong types, another version of the protocol.
    """
    request, problems = bind(RequestMessage, data, lambda key: "") if isinstance(data, dict) else (None, [])
    if request is None:
        raise WrongMessageError("; ".join(f"{key}: {text}" for key, text in problems) or "expected a JSON object")
    if request.protocol != PROTOCOL:
        raise WrongMessageError(f"protocol: this server speaks {PROTOCOL}, not {request.protocol}")
    return request


def to_group(request: RequestMessage) -> Group:
    """The group as a reward sees it. Versions, seeds, log-probs and the prompt's layout are not of the protocol."""
    sent = request.prompt
    utterance = Utterance(
        id=sent.utterance,
        audio="",
        text=sent.text,
        language=sent.language,
        speaker=sent.speaker,
        keywords=tuple(sent.keywords),
        instruction=sent.instruction,
        attributes=sent.attributes,
        prompt_text=sent.prompt_text,
    )
    trajectories = tuple(
        Trajectory(
            prompt_id=sent.id,
            index=sample.index,
            token_ids=tuple(sample.token_ids),
            logprobs=(0.0,) * len(sample.token_ids),
            version_first=0,
            version_last=0,
            finish_reason=sample.finish_reason,
            seed=0,
            text=sample.text,
            language=sample.language,
            speech_tokens=tuple(sample.speech_tokens),
        )
        for sample in request.samples
    )
    return Group(
        Prompt(id=sent.id, utterance=utterance, epoch=0, position=0, seed=0),
        PromptLayout((), 0, 0),
        trajectories,
        seconds=sent.seconds,
        peak=sent.peak,
        voice_tokens=(0,) if sent.voice is not None else (),
        past_lengths=tuple(sent.past_lengths),
    )


def read_wav(text: str, what: str) -> tuple[Wave, int]:
    """Base64 of a WAV file → float32 mono (samples,), and its sample rate in Hz.

    Raises:
        WrongMessageError: it is none, or has several channels.
    """
    try:
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(text, validate=True)), dtype="float32")
    except (binascii.Error, soundfile.SoundFileError) as error:
        raise WrongMessageError(f"{what}: not a WAV file in base64: {error}") from error
    if wave.ndim != 1:
        raise WrongMessageError(f"{what}: has {wave.shape[1]} channels, not 1")
    return wave, int(rate)


def read_scores(answer: Any, count: int) -> list[PartScore]:
    """What a server says of so many samples, in their order.

    What is wrong with one score makes its sample invalid; what is wrong with their number makes all of them so.

    Raises:
        WrongMessageError: no list of as many scores.
    """
    rows = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise WrongMessageError('expected {"scores": […]}')
    if len(rows) != count:
        raise WrongMessageError(f"{len(rows)} scores for {count} samples")
    return [_score(row) for row in rows]


def _score(row: Any) -> PartScore:
    if not isinstance(row, dict) or "score" not in row:
        return PartScore(invalid='wrong answer: a score has the form {"score": number or null, "reason": …}')
    value, reason, details = row["score"], row.get("reason"), row.get("details") or {}
    if not isinstance(details, dict) or not all(map(_is_number, details.values())):
        return PartScore(invalid="wrong answer: details are numbers by name")
    details = {key: float(number) for key, number in details.items()}
    if value is None:
        return PartScore(invalid=str(reason) if reason else "the server gives no reason", details=details)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return PartScore(invalid=f"wrong answer: a score is a number or null, not {type(value).__name__}")
    if not _is_number(value):  # NaN and Infinity are no JSON, but Python and others write them; 10^400 is JSON
        return PartScore(invalid="not a finite number")
    return PartScore(value=float(value), details=details)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _wav(sound: Sound) -> str:
    """Float samples, so that a server hears what a reward of this process would."""
    file = io.BytesIO()
    soundfile.write(file, np.asarray(sound.wave, np.float32), sound.sample_rate, format="WAV", subtype="FLOAT")
    return base64.b64encode(file.getvalue()).decode("ascii")


def in_places(scores: Sequence[PartScore], kept: Sequence[int], sounds: SoundGroup) -> list[PartScore]:
    """Scores of the samples that were sent, in their places; the others are invalid for the reason that they have."""
    found = dict(zip(kept, scores, strict=True))
    return [
        found[place] if isinstance(sound, Sound) else PartScore(invalid=sound.reason)
        for place, sound in enumerate(sounds.sounds)
    ]
