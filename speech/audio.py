"""Waveforms in: any file that libsndfile reads becomes float32 mono at the rate the caller asks for.

A path may name a place inside a larger file (`speech/containers`), which is decoded where it lies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speech.containers import container_of, locate, open_bytes
from speech.errors import InputError, Problem
from speech.records import Utterance

SEGMENT_SLACK = 0.05
"""Seconds by which a segment may overrun its file unremarked: manifests round `duration` to one or two decimals."""

SEGMENT_OVERSHOOT = 0.5
"""Seconds by which a segment may overrun its file at all, and is cut at its end: that of Kaldi's extract-segments."""

CANCELLED = 0.1
"""Channels cancel when their sum is weaker than this share of the loudest of them (20 dB below). Channels that share
nothing add up to more, and one channel beside silent ones to exactly itself."""

FULL_SCALE_LIMIT = 4.0
"""Lossy codecs overshoot full scale a little and are clipped; a float file above this was never scaled to [-1, 1]."""

MIN_SAMPLE_RATE = 4_000
"""Hz. No speech is recorded below this: the header is wrong."""

_UNKNOWN_FRAMES = 2**48
"""libsndfile reports an absurd frame count for a stream whose header holds no length."""

_DECLARED = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""How libsndfile's log says that a chunk of WAV, RF64, W64, AIFF, AU or SVX is shorter than its header declares; the
number of frames that it reports is that of the bytes that are there."""

_STREAMED = range(0x7FFF_F000, 2**32)
"""Lengths that encoders write when they cannot go back to the header (ffmpeg and sox into a pipe): no length at all."""

_OGG_PAGE = 27 + 255 + 255 * 255
"""Bytes of the largest page of Ogg."""

_SPHERE_FRAMES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)

_MP3_LEAD_FRAMES = 8_000
"""Decoded and thrown away before a segment: MP3 frames borrow bits from their predecessors, so the first ones after
a seek come out silent."""


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Lengths of utterance that are accepted.

    Raises:
        ValueError: the limits are negative or cross.
    """

    min_seconds: float = 0.1
    """Utterances shorter than this are reported as bad."""

    max_seconds: float = 60.0
    """Utterances longer than this are reported as bad."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ValueError(f"need 0 <= min_seconds <= max_seconds, got {self.min_seconds} and {self.max_seconds}")

    def complaint(self, seconds: float) -> str | None:
        """What is wrong with an utterance of this length, or None."""
        if seconds < self.min_seconds:
            return f"{seconds:.2f} s is shorter than min_seconds = {self.min_seconds:g}"
        if seconds > self.max_seconds:
            return f"{seconds:.2f} s is longer than max_seconds = {self.max_seconds:g}"
        return None


def audio_seconds(path: str | Path) -> float:
    """Length of a file in seconds, from its header.

    Raises:
        InputError: the file is missing, is not audio that libsndfile reads, holds no samples, states no length or is
            shorter than it states.
    """
    with _opened(path) as file:
        return _frames(file, path) / file.samplerate


def audio_channels(path: str | Path) -> int:
    """Number of channels of a file, from its header.

    Raises:
        InputError: the file is missing, or is not audio that libsndfile reads.
    """
    with _opened(path) as file:
        return int(file.channels)


def load_audio(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """The utterance's waveform.

    Channels are averaged unless the utterance names one, then the signal is resampled (soxr, high quality) if the file
    has another rate.

    Args:
        utterance: its `start` and `duration` (seconds) choose a segment of the file, which is cut at the file's end;
            its `channel` one of the channels.
        sample_rate: Hz of the result.

    Returns:
        float32 array (samples,), clipped to [-1, 1].

    Raises:
        InputError: the file is missing, corrupt, empty or cut short, the segment lies outside it, it has no such
            channel, its channels cancel, its samples are not finite or not scaled to [-1, 1], or all of them are 0
            under a transcript that says something.
    """
    path = utterance.audio
    with _opened(path) as file:
        first, count = _segment(file, utterance)
        sound = _read(file, first, count)
        rate = file.samplerate
    if len(sound) + SEGMENT_SLACK * rate < count:
        raise _bad(path, f"breaks off: {len(sound)} of {count} samples could be decoded")
    wave = _one_channel(sound, utterance)
    if not np.isfinite(wave).all():
        raise _bad(path, "holds samples that are not finite (NaN or infinity)")
    if not wave.any() and any(character.isalnum() for character in utterance.text):
        raise _bad(path, "is silent: every sample is 0, and yet there is a transcript")
    peak = float(np.abs(wave).max(initial=0.0))
    if peak > FULL_SCALE_LIMIT:
        raise _bad(path, f"samples reach {peak:g}: a float file must be scaled to [-1, 1]")
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate, quality="HQ")
    if not len(wave):
        raise _bad(path, "holds no samples")
    return np.clip(wave, -1.0, 1.0).astype(np.float32, copy=False)


@contextmanager
def _opened(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open a sound file, turning every way in which opening or decoding fails into an InputError."""
    whole = Path(container_of(str(path)))
    if not whole.is_file():
        raise _bad(path, "is not a file" if whole.exists() else "no such file")
    try:
        # libsndfile opens a file of its own by itself.
        source = nullcontext(path) if locate(str(path)) is None else open_bytes(str(path))
        with source as sound, soundfile.SoundFile(sound) as file:
            if file.samplerate < MIN_SAMPLE_RATE:
                raise _bad(path, f"its header states a sample rate of {file.samplerate} Hz")
            _check_whole(file, path)
            yield file
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise _bad(path, f"cannot be decoded: {reason} (readable: wav, flac, ogg, opus, mp3, aiff, …)") from error
    except OSError as error:  # of a container; of a file of its own libsndfile tells
        raise _bad(path, f"cannot be read: {error.strerror or error}") from error
    except TypeError as error:
        # soundfile raises this for headerless .raw files, whose rate and sample format nobody told us.
        raise _bad(path, "has no header (raw samples); convert it to wav or flac") from error


def _check_whole(file: soundfile.SoundFile, path: str | Path) -> None:
    """Refuse a file that is shorter than its header declares, as an interrupted copy is.

    FLAC and MP3 are found out when they are decoded: only there do they end too early.
    """
    if not 0 < file.frames < _UNKNOWN_FRAMES:
        return
    if file.format == "OGG" and not _ends_in_ogg(path):
        raise _bad(path, "breaks off: its last Ogg page is not the stream's last; encode it again if it is whole")
    log = file.extra_info
    missing = 0.0
    for declared, actual in ((int(a), int(b)) for a, b in _DECLARED.findall(log)):
        if actual < declared < 2**62 and declared not in _STREAMED:
            missing = max(missing, file.frames * (declared / max(actual, 1) - 1.0))
    if file.format == "NIST":
        with open_bytes(str(path)) as header:
            found = _SPHERE_FRAMES.search(header.read(1024))
        missing = int(found[1]) - file.frames if found else 0.0
    lost = missing / file.samplerate
    if lost > SEGMENT_SLACK:
        there = file.frames / file.samplerate
        raise _bad(path, f"breaks off: its header declares {there + lost:.2f} s, {there:.2f} s are there")
    if file.format == "VOC" and "truncated file" in log:
        raise _bad(path, "breaks off: it is shorter than its header declares")


def _ends_in_ogg(path: str | Path) -> bool:
    """Whether the last page of an Ogg file is all there and marked as the end of its stream (RFC 3533, section 6)."""
    with open_bytes(str(path)) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _OGG_PAGE, 0))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:
        return False
    segments = page[27 : 27 + page[26]]
    return len(segments) == page[26] and 27 + len(segments) + sum(segments) <= len(page) and bool(page[5] & 4)


def _one_channel(sound: np.ndarray, utterance: Utterance) -> np.ndarray:
    """(frames, channels) → (frames,): the utterance's channel, or the average of all."""
    channels = sound.shape[1]
    if utterance.channel is not None:
        complaint = channel_complaint(utterance.channel, channels)
        if complaint is not None:
            raise _bad(utterance.audio, complaint)
        return sound[:, utterance.channel]
    wave: np.ndarray = sound.mean(axis=1)
    if channels > 1:
        loudest = np.sqrt(np.einsum("tc,tc->c", sound, sound).max(initial=0.0))
        together = channels * np.sqrt(np.dot(wave, wave))
        if together < CANCELLED * loudest:
            raise _bad(utterance.audio, f"its {channels} channels cancel: averaged, they leave nothing of the speech "
                                        "(one is the other upside down); name one with `channel`")  # fmt: skip
    return wave


def channel_complaint(channel: int, channels: int) -> str | None:
    """What is wrong with a channel of a file that has so many, or None."""
    return None if channel < channels else f"has no channel {channel}: it has {channels}, the first is 0"


def _frames(file: soundfile.SoundFile, path: str | Path) -> int:
    frames = int(file.frames)
    if frames >= _UNKNOWN_FRAMES:
        raise _bad(path, "its header states no length; encode it again")
    if frames == 0:
        raise _bad(path, "holds no samples")
    return frames


def _segment(file: soundfile.SoundFile, utterance: Utterance) -> tuple[int, int]:
    """(first frame, number of frames) of the utterance, in frames of the file."""
    path, rate = utterance.audio, file.samplerate
    total = _frames(file, path)
    problem = segment_complaint(utterance.start, utterance.duration, total / rate)
    if problem is not None:
        raise _bad(path, problem)
    first = round(utterance.start * rate)
    count = total - first if utterance.duration is None else min(round(utterance.duration * rate), total - first)
    if count <= 0:
        raise _bad(path, f"the segment at {utterance.start:g} s holds no samples")
    return first, count


def segment_complaint(start: float, duration: float | None, seconds: float) -> str | None:
    """What is wrong with a segment (`start`, `duration`) of a file that lasts `seconds`, or None.

    One that ends up to `SEGMENT_OVERSHOOT` after the file is cut there.
    """
    end = start if duration is None else start + duration
    if start < 0 or start >= seconds or end > seconds + SEGMENT_OVERSHOOT:
        return f"segment {start:g} s … {end:g} s lies outside the file, which lasts {seconds:.2f} s"
    return None


def _read(file: soundfile.SoundFile, first: int, count: int) -> np.ndarray:
    """Frames [first, first + count) as float32 (frames, channels); fewer when the file breaks off."""
    lead = min(first, _MP3_LEAD_FRAMES) if file.format == "MP3" else 0
    if not file.seekable():
        lead = first
    elif first > lead:
        file.seek(first - lead)
    return file.read(lead + count, dtype="float32", always_2d=True)[lead:]


def _bad(path: str | Path, message: str) -> InputError:
    return InputError("cannot read audio", [Problem(file=str(path), line=None, key=None, message=message)])
