"""Waveforms in: any file that libsndfile reads becomes float32 mono at the rate the caller asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speech.errors import InputError, Problem
from speech.records import Utterance

SEGMENT_SLACK = 0.05
"""Seconds by which a segment may overrun its file: manifests round `duration` to one or two decimals."""

FULL_SCALE_LIMIT = 4.0
"""Lossy codecs overshoot full scale a little and are clipped; a float file above this was never scaled to [-1, 1]."""

MIN_SAMPLE_RATE = 4_000
"""Hz. No speech is recorded below this: the header is wrong."""

_UNKNOWN_FRAMES = 2**48
"""libsndfile reports an absurd frame count for a stream whose header holds no length."""

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
        InputError: the file is missing, is not audio that libsndfile reads, holds no samples or states no length.
    """
    with _opened(path) as file:
        return _frames(file, path) / file.samplerate


def load_audio(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """The utterance's waveform.

    Channels are averaged, then the signal is resampled (soxr, high quality) if the file has another rate.

    Args:
        utterance: its `start` and `duration` (seconds) choose a segment of the file.
        sample_rate: Hz of the result.

    Returns:
        float32 array (samples,), clipped to [-1, 1].

    Raises:
        InputError: the file is missing, corrupt or empty, the segment lies outside it, or its samples are not
            finite or not scaled to [-1, 1].
    """
    path = utterance.audio
    with _opened(path) as file:
        first, count = _segment(file, utterance)
        wave = _read(file, first, count).mean(axis=1)
        rate = file.samplerate
    if len(wave) + SEGMENT_SLACK * rate < count:
        raise _bad(path, f"breaks off: {len(wave)} of {count} samples could be decoded")
    if not np.isfinite(wave).all():
        raise _bad(path, "holds samples that are not finite (NaN or infinity)")
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
    if not Path(path).is_file():
        raise _bad(path, "is not a file" if Path(path).exists() else "no such file")
    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate < MIN_SAMPLE_RATE:
                raise _bad(path, f"its header states a sample rate of {file.samplerate} Hz")
            yield file
    except soundfile.SoundFileError as error:
        reason = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
        raise _bad(path, f"cannot be decoded: {reason} (readable: wav, flac, ogg, opus, mp3, aiff, …)") from error
    except TypeError as error:
        # soundfile raises this for headerless .raw files, whose rate and sample format nobody told us.
        raise _bad(path, "has no header (raw samples); convert it to wav or flac") from error


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
    """What is wrong with a segment (`start`, `duration`) of a file that lasts `seconds`, or None."""
    end = start if duration is None else start + duration
    if start < 0 or start >= seconds or end > seconds + SEGMENT_SLACK:
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
