"""Reading and validating a manifest as a whole."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Literal, overload

import numpy as np

from speech.audio import AudioLimits
from speech.errors import InputError, Problem, UserError
from speech.manifests.entries import nearest
from speech.manifests.formats import FORMATS, detect_format
from speech.manifests.index import INDEXED_FROM, index_key, read_index, write_index
from speech.manifests.recordings import Complaint, changed_rows, check_headers, length_complaints
from speech.manifests.scan import Scan, file_at, scan
from speech.manifests.store import Utterances, stored
from speech.records import Utterance

HEADERS_AT_START = 10_000
"""Utterances that state their `duration`, up to which all headers are opened even so: it takes seconds."""

STAMPS_AT_START = 100_000
"""Utterances of an index up to which the files are looked at again: it takes a second, and far more for a million on a
network file system."""


class Places(Sequence[tuple[str, int]]):
    """File and 1-based line of each utterance.

    Args:
        files: (file, lines before it) in order; lines count on from file to file.
        lines: int array (utterances,).
    """

    def __init__(self, files: Sequence[tuple[str, int]], lines: np.ndarray) -> None:
        self._files, self._lines = files, lines

    def at(self, indices: np.ndarray) -> Places:
        """Those of the utterances at these indices."""
        return Places(self._files, self._lines[indices])

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, int] | Sequence[tuple[str, int]]:
        if isinstance(index, slice):
            return Places(self._files, self._lines[index])
        return self._place(int(self._lines[index]))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return map(self._place, self._lines.tolist())

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def _place(self, line: int) -> tuple[str, int]:
        file, before = self._files[bisect_left(self._files, line, key=itemgetter(1)) - 1]
        return file, line - before


@dataclass(frozen=True, slots=True)
class Manifest:
    """A validated manifest.

    Attributes:
        utterances: in the order of the file. Their `duration` is set whenever headers were checked.
        skipped: what was wrong with the lines left out (`on_bad="skip"`); a line may have several problems.
        path: as the user wrote it.
        format: a key of `FORMATS`.
        places: file and 1-based line of each utterance, for messages.
        unchecked: number of utterances whose audio headers nobody has opened yet.
    """

    utterances: Sequence[Utterance]
    skipped: tuple[Problem, ...]
    path: str
    format: str
    places: Places = field(default_factory=lambda: Places((), np.zeros(0, np.int32)))
    unchecked: int = 0

    def fingerprint(self) -> str:
        """Hexadecimal digest of what the lines say, their order included; the folders of audio files are left out."""
        return stored(self.utterances).fingerprint()

    def at(self, indices: Sequence[int] | np.ndarray) -> Manifest:
        """The same with only the utterances at these indices, in this order."""
        utterances, chosen = stored(self.utterances), np.asarray(indices, np.int64)
        return replace(self, utterances=utterances.select(utterances.rows[chosen]), places=self.places.at(chosen))


def load_manifest(
    path: str | Path,
    *,
    format: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    limits: AudioLimits | None = None,
    require_text: bool = True,
    check_audio: Literal["header", "lazy", "none"] = "header",
) -> Manifest:
    """Read a manifest and validate every line of it. A long one leaves an index behind, which the next call reads.

    Args:
        path: a file, a folder, or a pattern with braces for several files (`shard-{000..003}.tar`).
        format: `auto` decides by content; otherwise a key of `FORMATS`.
        on_bad: `error` raises with all problems of all lines; `skip` leaves bad lines out and returns why.
        limits: accepted lengths of utterances (default `AudioLimits()`); applied where the length is known.
        require_text: whether an utterance without a transcript is bad.
        check_audio: `header` opens every audio file once, checks segments against its length and fills in
            `duration`; `lazy` opens only those without a `duration` where more than `HEADERS_AT_START` have one;
            `none` trusts the manifest. What the index knows is not opened again, unless the file has changed.

    Raises:
        InputError: problems with `on_bad="error"`; no usable utterance at all; not a manifest; it changed meanwhile.
        UserError: an unknown format name.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        near = nearest(format, FORMATS)
        hint = f"did you mean {near!r}?" if near else f"known formats: auto, {', '.join(FORMATS)}"
        raise UserError(f"unknown manifest format {format!r}; {hint}")
    detected = detect_format(path)
    format = detected if format == "auto" else format
    if format != detected and not (FORMATS[format].of_lines and FORMATS[detected].of_lines):
        raise UserError(f"{path}: format {format!r} was asked for, but this looks like {FORMATS[detected].expects}")

    key = index_key(path, format, require_text)
    found = read_index(path, key)
    fresh = found is None
    if found is None:
        found = scan(path, format, require_text)
        if index_key(path, format, require_text) != key:
            message = "changed while it was read; try again when it is complete"
            raise InputError("cannot read a manifest", [Problem(str(path), None, None, message)])
    problems = list(found.problems)
    rows, duplicates = _without_duplicates(found, path)
    problems += duplicates
    utterances = found.utterances.select(rows)
    utterances, complaints, opened = _check_audio(utterances, check_audio)
    if (fresh or opened) and len(utterances) >= INDEXED_FROM:
        write_index(path, key, replace(found, utterances=Utterances(utterances.columns, utterances.folder)))
    complaints += length_complaints(utterances.select(_without(utterances.rows, complaints)), limits or AudioLimits())
    places = _places(found, path)
    problems += (Problem(*places[c.row], found.names.get(c.key, c.key), c.message) for c in complaints)

    good = utterances.select(_without(utterances.rows, complaints))
    if format == "jsonl":
        # Its reader may find fault with a line (an unknown key) that is otherwise usable.
        bad = [problem.line for problem in found.problems if problem.line is not None]
        good = good.select(good.rows[~np.isin(good.columns.lines[good.rows], bad)])
    problems.sort(key=lambda problem: (problem.file, problem.line or 0))
    if problems and on_bad == "error":
        count = len({(problem.file, problem.line) for problem in problems})
        raise InputError(f"{path}: {_count(len(problems), 'problem')} in {_count(count, 'line')}", problems)
    if not good:
        raise InputError(f"{path}: no usable utterance", problems)
    unchecked = int(np.count_nonzero(good.columns.stamps[good.rows] == 0))
    return Manifest(good, tuple(problems), str(path), format, places.at(good.rows), unchecked)


def _without_duplicates(found: Scan, path: Path) -> tuple[np.ndarray, list[Problem]]:
    """Rows of the first utterance of each id, and a problem for each later one that names both lines."""
    utterances = found.utterances
    places, key = _places(found, path), found.names.get("id", "id")
    pairs = utterances.repeated()
    again = utterances.select(np.array([row for row, _ in pairs], np.int64))
    problems = [
        Problem(*places[row], key, f"duplicate {utterance.id!r}, first on {_first(places[row], places[earlier])}")
        for (row, earlier), utterance in zip(pairs, again, strict=True)
    ]
    return np.setdiff1d(utterances.rows, again.rows, assume_unique=True), problems


def _places(found: Scan, path: Path) -> Places:
    """Of all rows of a scan."""
    return Places([(file_at(path, name), before) for name, before in found.files], found.utterances.columns.lines)


def _first(place: tuple[str, int], earlier: tuple[str, int]) -> str:
    return f"line {earlier[1]}" if earlier[0] == place[0] else f"line {earlier[1]} of {earlier[0]}"


def _check_audio(
    utterances: Utterances, which: Literal["header", "lazy", "none"]
) -> tuple[Utterances, list[Complaint], bool]:
    """Open the headers that have to be opened; whether there were any."""
    rows, stamps = utterances.rows, utterances.columns.stamps
    if which == "none" or not len(rows):
        return utterances, [], False
    new, old = rows[stamps[rows] == 0], rows[stamps[rows] != 0]
    if which == "lazy":
        unstated = new[np.isnan(utterances.columns.seconds[new])]
        new = new if len(new) - len(unstated) <= HEADERS_AT_START else unstated
        old = old if len(old) <= STAMPS_AT_START else old[:0]
    chosen = np.sort(np.concatenate([new, changed_rows(utterances.select(old))]))
    checked, complaints = check_headers(utterances.select(chosen))
    return Utterances(checked.columns, utterances.folder, rows), complaints, bool(len(chosen))


def _without(rows: np.ndarray, complaints: list[Complaint]) -> np.ndarray:
    return rows[~np.isin(rows, [complaint.row for complaint in complaints])]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
