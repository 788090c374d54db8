"""Looking at the audio files of a manifest: headers, segments, and whether a file is still the one that it was."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from speech.audio import SEGMENT_SLACK, AudioLimits, audio_seconds, segment_complaint
from speech.containers import container_of, open_bytes
from speech.errors import InputError
from speech.manifests.channels import channel_counts, wrong_channel
from speech.manifests.progress import map_files
from speech.manifests.store import Utterances
from speech.records import Utterance

logger = logging.getLogger(__name__)

_SAMPLE_BYTES = 4096
"""Of the beginning and the end of a file: they hold header and first sound, last sound and (in ogg) checksums."""

_LOOKED_AT = 200
"""Files that one thread looks at in a batch."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with the audio of a row of `Utterances`; `key` is the one of our own format."""

    row: int
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Header:
    """Of an audio file: its length in seconds, and a hash of size, beginning and end."""

    seconds: float
    sound: bytes


def check_headers(utterances: Utterances) -> tuple[Utterances, list[Complaint]]:
    """Open the audio file of every utterance, once, and see that its segment lies inside.

    Returns:
        The same utterances with `seconds`, `voice_seconds`, `stamps` and `sounds` of those that are as they should be
        (the others are as if they had not been looked at), and what is wrong with the others.
    """
    files: dict[str, bool] = {}  # whether an utterance names a channel of it
    for utterance in utterances.as_written():  # to read all records takes a while: once for both
        if utterance.audio:
            files[utterance.audio] = files.get(utterance.audio, False) or utterance.channel is not None
        if utterance.prompt_audio:
            files.setdefault(utterance.prompt_audio, False)
    stamps = _stamps(list(files))
    headers = dict(zip(files, map_files(_header, list(files), "checking audio"), strict=True))
    channels = channel_counts(file for file, named in files.items() if named)
    columns = utterances.columns
    seconds, voice_seconds = columns.seconds.copy(), columns.voice_seconds.copy()
    stamp, sound = columns.stamps.copy(), columns.sounds.copy()
    complaints: list[Complaint] = []
    cut: list[str] = []
    for row, utterance in zip(utterances.rows.tolist(), utterances.as_written(), strict=True):
        found = [Complaint(row, key, message) for key, message in _complaints(utterance, headers)]
        if (message := wrong_channel(utterance, channels)) is not None:
            found.append(Complaint(row, "channel", message))
        complaints += found
        length = math.nan if utterance.duration is None else utterance.duration
        voice, stamp[row], sound[row] = math.nan, 0, 0
        if not found:
            own, other = headers.get(utterance.audio), headers.get(utterance.prompt_audio or "")
            if isinstance(own, Header):
                left = own.seconds - utterance.start
                if length > left + SEGMENT_SLACK:
                    cut.append(f"{utterance.id} ends {length - left:.2f} s after {utterance.audio}")
                # A duration that is not given is NaN, and the smaller one is that of the file.
                length = min(left, length)
            if isinstance(other, Header):
                voice = other.seconds
            parts = [header.sound for header in (own, other) if isinstance(header, Header)]
            stamp[row], sound[row] = _stamp_of(utterance, stamps), _hash(*parts)
        seconds[row], voice_seconds[row] = length, voice
    if cut:
        noun = "segment" if len(cut) == 1 else "segments"
        logger.warning("%s cut at the end of the file, the first: %s", f"{len(cut):,} {noun}", cut[0])
    columns = replace(columns, seconds=seconds, voice_seconds=voice_seconds, stamps=stamp, sounds=sound)
    return Utterances(columns, utterances.folder, utterances.rows), complaints


def changed_rows(utterances: Utterances) -> np.ndarray:
    """Rows whose audio files have another size or time of change than when their headers were read."""
    stamps = _stamps(list(dict.fromkeys(file for u in utterances for file in (u.audio, u.prompt_audio) if file)))
    now = [_stamp_of(utterance, stamps) for utterance in utterances]
    return utterances.rows[utterances.columns.stamps[utterances.rows] != np.array(now, np.uint64)]


def length_complaints(utterances: Utterances, limits: AudioLimits) -> list[Complaint]:
    """What is wrong with the lengths that are known."""
    complaints = []
    for key, column in (("duration", utterances.columns.seconds), ("prompt_audio", utterances.columns.voice_seconds)):
        seconds = column[utterances.rows]
        outside = (seconds < limits.min_seconds) | (seconds > limits.max_seconds)
        bad = utterances.select(utterances.rows[outside])
        for row, utterance, length in zip(bad.rows.tolist(), bad, seconds[outside].tolist(), strict=True):
            message = limits.complaint(length) or ""
            complaints.append(
                Complaint(row, key, message if key == "duration" else f"{utterance.prompt_audio}: {message}")
            )
    return complaints


def _stamp_of(utterance: Utterance, stamps: Mapping[str, bytes]) -> int:
    """Of all files of an utterance, each once."""
    return _hash(*(stamps[file] for file in dict.fromkeys((utterance.audio, utterance.prompt_audio)) if file))


def _complaints(utterance: Utterance, headers: Mapping[str, Header | str]) -> list[tuple[str, str]]:
    """(key, message) of what is wrong with an utterance's voice and recording."""
    complaints = []
    for key, file in (("prompt_audio", utterance.prompt_audio), ("audio", utterance.audio)):
        header = headers[file] if file else None
        if isinstance(header, str):
            complaints.append((key, f"{file}: {header}"))
        elif header is not None and key == "audio":
            message = segment_complaint(utterance.start, utterance.duration, header.seconds)
            if message is not None:
                complaints.append(("duration" if utterance.duration else "start", message))
    return complaints


def _header(path: str) -> Header | str:
    """The header of an audio file, or what is wrong with the file."""
    try:
        return Header(audio_seconds(path), _sample(path))
    except InputError as error:
        return error.problems[0].message
    except OSError as error:
        return error.strerror or str(error)


def _sample(path: str) -> bytes:
    with open_bytes(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        first = file.read(_SAMPLE_BYTES)
        file.seek(max(0, size - _SAMPLE_BYTES))
        return hashlib.blake2b(b"%d " % size + first + file.read(_SAMPLE_BYTES), digest_size=8).digest()


def _stamps(files: list[str]) -> dict[str, bytes]:
    """Size and time of change by file; of one that is not there, nothing."""
    # In batches: to look at a file takes less than to hand it to a thread.
    batches = [files[start : start + _LOOKED_AT] for start in range(0, len(files), _LOOKED_AT)]
    stamps = map_files(lambda batch: [_stamp(file) for file in batch], batches, "looking at audio")
    return dict(zip(files, chain.from_iterable(stamps), strict=True))


def _stamp(path: str) -> bytes:
    try:
        stat = os.stat(container_of(path))  # noqa: PTH116 - a Path for each of a million files takes twice as long
    except OSError:
        return b""
    return b"%d %d" % (stat.st_size, stat.st_mtime_ns)


def _hash(*parts: bytes) -> int:
    """A hash of 64 bits; never 0, which stands for what is not known."""
    return int.from_bytes(hashlib.blake2b(b"/".join(parts), digest_size=8).digest(), "big") or 1
