"""Sound inside the page: what was heard or said, as MP3, with spectrogram and F0 of what was said."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from cluster.report.runs import RunRecord
from cluster.report.utterances import speaks
from rewards.listening.pitch import f0_contour
from speech.audio import SEGMENT_OVERSHOOT, audio_seconds, load_audio
from speech.errors import InputError, UserError
from speech.manifests.store import DamagedStoreError, read_store
from speech.records import Utterance

BANDS = 48
"""Rows of a spectrogram, evenly spaced in mel."""
FRAMES = 300
"""Columns of a spectrogram, at most."""
_HOP_S = 0.02
_WINDOW_S = 0.04
_RANGE_DB = 65.0
_F0_FRAME_S = 0.01

Sound = dict[str, Any]


class SoundShelf:
    """The sounds of a page, as many as its budget holds.

    Attributes:
        sounds: by key: `uri` of a player, and of what was said `bands` (bytes of the spectrogram, a column of `BANDS`
            after another, in base64) and `f0` (Hz per column, 0 where unvoiced).
        left_out: sounds for which there was no room.
        notes: what is missing on all of them.
    """

    def __init__(self, budget: int) -> None:
        """
        Args:
            budget: characters that they may take.
        """
        self.sounds: dict[str, Sound] = {}
        self.left_out = 0
        self.notes: list[str] = []
        self._left = budget

    def put(self, key: str, utterance: Utterance, said: bool) -> str | None:
        """Take in a sound, unless it is there already or there is no room. Returns what is wrong with it, or None."""
        if key in self.sounds:
            return None
        if self._left <= 0:
            self.left_out += 1
            return None
        try:
            stamp = Path(utterance.audio).stat().st_mtime_ns if Path(utterance.audio).is_file() else 0
            sound, note = _encoded(utterance, said, stamp)
        except InputError as error:
            return "; ".join(problem.message for problem in error.problems) or str(error)
        except (OSError, soundfile.SoundFileError) as error:
            return f"cannot be read or encoded: {error}"
        if note and note not in self.notes:
            self.notes.append(note)
        size = sum(len(str(value)) for value in sound.values())
        if size > self._left:
            self._left = 0  # none of the next either: players end at one place of the table
            self.left_out += 1
            return None
        self._left -= size
        self.sounds[key] = sound
        return None


def add_sounds(runs: Sequence[RunRecord], rows: Sequence[dict[str, Any]], shelf: SoundShelf) -> None:
    """Give rows their sounds, in order: `sound` of a row or of its sides is a key, `sound_note` what is wrong."""
    lines = [{stage: {line["id"]: line for line in run.hypotheses(stage)} for stage in run.evaluations} for run in runs]
    segments = [{} if speaks(run) else _segments(run) for run in runs]
    for row in rows:
        run, number = runs[row["run"]], row["run"]
        if speaks(run):
            for stage, side in row["sides"].items():
                path = _wave(run, stage, lines[number][stage][row["id"]].get("wave"))
                if path is not None:
                    utterance = Utterance(id=row["id"], audio=str(path), text="")
                    _attach(side, f"{number}/{stage}/{row['id']}", utterance, True, shelf)
            continue
        line = next(iter(its[row["id"]] for its in lines[number].values() if row["id"] in its))
        if not line.get("audio"):
            continue
        known = segments[number].get(row["id"])
        utterance = Utterance(
            id=row["id"],
            audio=line["audio"],
            text="",
            start=known.start if known else 0.0,
            duration=known.duration if known else None,
            channel=known.channel if known else None,
        )
        if known is None and _is_segment(line):
            row["sound_note"] = "a part of a file; data/test.utterances does not say which"
            continue
        _attach(row, f"{line['audio']} {utterance.start} {utterance.duration}", utterance, False, shelf)


def _attach(place: dict[str, Any], key: str, utterance: Utterance, said: bool, shelf: SoundShelf) -> None:
    problem = shelf.put(key, utterance, said)
    if problem is not None:
        place["sound_note"] = problem
    elif key in shelf.sounds:
        place["sound"] = key


def _wave(run: RunRecord, stage: str, wave: str | None) -> Path | None:
    """The file of a sample. A run's folder may have been moved since it was written."""
    if not wave:
        return None
    here = run.path / "audio" / stage / Path(wave).name
    return here if here.is_file() else Path(wave)


def _is_segment(line: Mapping[str, Any]) -> bool:
    try:
        return audio_seconds(line["audio"]) > float(line.get("seconds") or 0.0) + SEGMENT_OVERSHOOT
    except InputError:
        return False  # whoever reads it says what is wrong


def _segments(run: RunRecord) -> dict[str, Utterance]:
    """Utterances of the test split that the run kept, by id; none where a release wrote them otherwise."""
    try:
        with (run.path / "data" / "test.utterances").open("rb") as file:
            return {utterance.id: utterance for utterance in read_store(file, str(run.path))[0]}
    except (OSError, DamagedStoreError):
        return {}


@lru_cache(maxsize=4096)
def _encoded(utterance: Utterance, said: bool, stamp: int) -> tuple[Sound, str | None]:
    """The sound and a note. Kept, since a page that follows a run is made again and again.

    MP3, because every browser plays it; libsndfile's Opus takes four times as long and is not smaller at this quality.
    """
    with_rate = soundfile.info(utterance.audio).samplerate if Path(utterance.audio).is_file() else 16_000
    rate = 16_000 if with_rate <= 16_000 else 24_000
    wave = load_audio(utterance, rate)
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="MP3", compression_level=0.7, bitrate_mode="VARIABLE")
    sound: Sound = {"uri": f"data:audio/mpeg;base64,{_base64(file.getvalue())}"}
    if not said:
        return sound, None
    bands, hop = spectrogram(wave, rate)
    sound |= {"bands": _base64(bands.tobytes()), "seconds": len(wave) / rate}
    try:
        contour = f0_contour(wave, rate)
    except UserError as error:
        return sound, str(error)
    places = np.minimum(np.arange(len(bands)) * hop / _F0_FRAME_S, max(len(contour) - 1, 0)).astype(int)
    sound["f0"] = [round(value) for value in contour[places]] if len(contour) else []
    return sound, None


def spectrogram(wave: NDArray[np.float32], rate: int) -> tuple[NDArray[np.uint8], float]:
    """Energies in mel bands.

    Args:
        wave: (samples,) mono.
        rate: Hz.

    Returns:
        (frames, `BANDS`) from 0 (65 dB below the loudest) to 255, low bands first; and seconds between frames.
    """
    hop_s = max(_HOP_S, len(wave) / rate / FRAMES)
    hop, width = round(hop_s * rate), round(_WINDOW_S * rate)
    padded = np.pad(wave.astype(np.float64), (width // 2, width))
    count = max(1, min(FRAMES, len(wave) // hop))
    frames = np.stack([padded[i * hop : i * hop + width] for i in range(count)]) * np.hanning(width)
    power = np.abs(np.fft.rfft(frames)) ** 2 @ _mel_bank(width, rate)
    level = 10 * np.log10(np.maximum(power, 1e-12))
    scaled = (level - level.max() + _RANGE_DB) / _RANGE_DB * 255
    return np.clip(scaled, 0, 255).astype(np.uint8), hop / rate


@lru_cache(maxsize=8)
def _mel_bank(width: int, rate: int) -> NDArray[np.float64]:
    """Triangles (width // 2 + 1, BANDS) from 60 Hz to half the rate (O'Shaughnessy's mel: 2595 log10(1 + f/700))."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (60.0, min(8000.0, rate / 2)))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(width, 1 / rate)[:, None]
    rise, fall = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank: NDArray[np.float64] = np.maximum(0.0, np.minimum(rise, fall))
    for band in np.flatnonzero(bank.sum(axis=0) == 0):  # narrower than a bin
        bank[np.abs(bins[:, 0] - edges[band + 1]).argmin(), band] = 1.0
    return bank


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
