"""Writing utterances out as their own compressed files, so that training need not cut and resample every epoch."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import soundfile

from speech.audio import audio_seconds, load_audio
from speech.containers import container_of
from speech.errors import InputError, Problem, UserError
from speech.manifests.progress import map_files
from speech.records import Utterance

AudioFormat = Literal["flac", "opus"]

_ENCODINGS: dict[str, dict[str, str]] = {
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


def convert_audio(
    utterances: Sequence[Utterance], folder: Path, audio_format: AudioFormat, sample_rate: int
) -> tuple[list[Utterance], list[Problem]]:
    """Write each utterance as a mono file of its own.

    A file appears under its name only when it is complete, and is kept when the same call runs again, so an
    interrupted conversion continues where it stopped. A source that is newer than its result is converted again.

    Args:
        folder: the files go into subfolders `00` … `ff` of it, named after id, source, segment and rate.
        sample_rate: Hz; opus allows 8, 12, 16, 24 and 48 kHz.

    Returns:
        The utterances with `audio`, `start` and `duration` of the new files, without those whose audio turned out to
        be bad when it was decoded, and what was wrong with these.

    Raises:
        UserError: the folder cannot be written, or opus at another rate.
    """
    if audio_format == "opus" and sample_rate not in (8_000, 12_000, 16_000, 24_000, 48_000):
        raise UserError(f"opus cannot hold {sample_rate} Hz; choose 8000, 12000, 16000, 24000 or 48000, or flac")
    work = partial(_convert, folder=folder, audio_format=audio_format, sample_rate=sample_rate)
    results = map_files(work, utterances, "converting audio", show_from=200)
    converted = [result for result in results if isinstance(result, Utterance)]
    problems = [problem for result in results if not isinstance(result, Utterance) for problem in result]
    return converted, problems


def _convert(
    utterance: Utterance, folder: Path, audio_format: AudioFormat, sample_rate: int
) -> Utterance | tuple[Problem, ...]:
    target = folder / _file_name(utterance, audio_format, sample_rate)
    try:
        if not _is_current(target, Path(container_of(utterance.audio))):
            wave = load_audio(utterance, sample_rate)
            temporary = target.with_name(f".{target.name}.{threading.get_ident()}.tmp")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                soundfile.write(temporary, wave, sample_rate, **_ENCODINGS[audio_format])
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        seconds = audio_seconds(target)
        return replace(utterance, audio=str(target.absolute()), start=0.0, duration=seconds, channel=None)
    except InputError as error:
        return error.problems
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{target}: cannot be written: {error}") from error


def _is_current(target: Path, source: Path) -> bool:
    return target.is_file() and source.is_file() and target.stat().st_mtime >= source.stat().st_mtime


def _file_name(utterance: Utterance, audio_format: str, sample_rate: int) -> Path:
    """A name that tells a person which utterance it is and changes with anything that changes the content."""
    channel = () if utterance.channel is None else (utterance.channel,)
    identity = (utterance.id, utterance.audio, utterance.start, utterance.duration, sample_rate, *channel)
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    readable = re.sub(r"[^\w.-]+", "_", utterance.id, flags=re.ASCII).strip("._")[-60:]
    return Path(digest[:2]) / f"{readable}-{digest[2:12]}.{audio_format}"
