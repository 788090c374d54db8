"""Utterances in little memory: compressed records beside columns of numbers. A million take about 150 MB.

A record is what the manifest says of an utterance. Records are read one by one, when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import IO, Any, overload

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from speech.records import Utterance

BLOCK = 128
"""Records compressed together. To read one is to decompress its block: some 30 kB, a tenth of a millisecond."""

_MAX_BLOCK_BYTES = 2**27
"""What a block may decompress to: a damaged file must not fill the memory."""

_SEAL_BYTES = 32

_HERE = "\0"
"""In place of the manifest's folder, so that it may move. No path holds this character."""


_DEFAULTS: dict[str, Any] = {
    field.name: field.default_factory() if field.default_factory is not MISSING else field.default
    for field in fields(Utterance)
} | {"audio": "", "text": ""}
"""What a record leaves out. A field that is new in a later release thus changes no record that does not have it."""


_FIELDS = attrgetter(*_DEFAULTS)
_ENCODER = json.JSONEncoder(default=dict)
"""Made once. Not msgspec's, which writes other bytes: runs keep hashes of records, by which a resume finds changes."""
_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class DamagedStoreError(ValueError):
    """Bytes that are not, or no longer, what `Utterances.to_bytes` wrote."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is kept of all utterances of a manifest, in its order.

    Attributes:
        records: bytes, the compressed blocks one after another.
        block_ends: int64 per block, where it ends in `records`.
        block_rows: int64 per block, number of rows up to its end.
        ids: bytes, the ids in UTF-8 one after another.
        id_ends: int64 per row, where its id ends in `ids`.
        contents: uint64 per row, a hash of the record. The folders of the audio files are left out: data may move.
        lines: int32 per row, 1-based line of the manifest.
        seconds: float64 per row, length of the utterance; NaN where it is not known.
        languages: int32 per row, the earliest row of the same language, or another early one.
        voice_seconds: float64 per row, length of the file of the prompt voice; NaN where it is not known.
        stamps: uint64 per row, a hash of size and time of change of the audio files when their headers were read; 0
            where they were not.
        sounds: uint64 per row, a hash of some of the content of the audio files; 0 where headers were not read.
    """

    records: np.ndarray
    block_ends: np.ndarray
    block_rows: np.ndarray
    ids: np.ndarray
    id_ends: np.ndarray
    contents: np.ndarray
    lines: np.ndarray
    seconds: np.ndarray
    languages: np.ndarray
    voice_seconds: np.ndarray
    stamps: np.ndarray
    sounds: np.ndarray


class Utterances(Sequence[Utterance]):
    """Some rows of `Columns`, as a sequence of `Utterance`.

    Args:
        folder: absolute folder of the manifest; audio below it is found wherever the folder stands.
        rows: int array, the rows that belong to the sequence, in order; None takes all.
    """

    def __init__(self, columns: Columns, folder: str, rows: np.ndarray | None = None) -> None:
        self.columns, self.folder = columns, folder
        self.rows = np.arange(len(columns.id_ends)) if rows is None else rows
        self._block: tuple[int, list[bytes]] = (-1, [])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Utterance, ...]: ...

    def __getitem__(self, index: int | slice) -> Utterance | tuple[Utterance, ...]:
        if isinstance(index, slice):
            # Not another view: chunks are sent to actors, which must not get all columns.
            return tuple(self.select(self.rows[index]))
        return self._utterance(int(self.rows[index]))

    def __iter__(self) -> Iterator[Utterance]:
        return map(self._utterance, self.rows.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def select(self, rows: np.ndarray) -> Utterances:
        """The sequence of these rows of the same columns."""
        return Utterances(self.columns, self.folder, rows)

    def as_written(self) -> Iterator[Utterance]:
        """The utterances with the `duration` that the manifest gives, whatever headers said."""
        return (self._utterance(row, measured=False) for row in self.rows.tolist())

    def by_language(self) -> list[tuple[Utterance, np.ndarray]]:
        """An utterance of each language, and the indices of all that are of it; without a language, too.

        Only one record of each is read.
        """
        representatives, places = np.unique(self.columns.languages[self.rows], return_inverse=True)
        order = np.argsort(places, kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(places)))[:-1]
        return [(self._utterance(row), group) for row, group in zip(representatives.tolist(), groups, strict=True)]

    def ids(self) -> Iterator[bytes]:
        """The ids in UTF-8, without reading a record."""
        blob, ends = self.columns.ids.tobytes(), self.columns.id_ends
        starts = np.concatenate(([0], ends[:-1]))
        for start, end in zip(starts[self.rows].tolist(), ends[self.rows].tolist(), strict=True):
            yield blob[start:end]

    def repeated(self) -> list[tuple[int, int]]:
        """(row, earlier row) of each utterance whose id has occurred before, and of the first with that id."""
        # A hash of 64 bits finds the candidates without a million strings in memory; the ids themselves decide.
        hashes = np.fromiter((hash(name) for name in self.ids()), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        candidates = self.select(self.rows[np.unique(order[[same, same + 1]])])
        first: dict[bytes, int] = {}
        pairs = (
            (row, first.setdefault(name, row))
            for row, name in zip(candidates.rows.tolist(), candidates.ids(), strict=True)
        )
        return [(row, earlier) for row, earlier in pairs if earlier != row]

    def fingerprint(self) -> str:
        """Hexadecimal digest of what the manifest says of these utterances, in this order."""
        return hashlib.blake2b(self.columns.contents[self.rows].tobytes(), digest_size=16).hexdigest()

    def to_bytes(self, header: Mapping[str, Any]) -> bytes:
        """The sequence (its columns whole) and a header of JSON values, with a checksum before them."""
        arrays = {field.name: getattr(self.columns, field.name) for field in fields(Columns)} | {
            "rows": np.ascontiguousarray(self.rows)
        }
        text = json.dumps(header).encode("ascii")
        content = save(arrays | {"header": np.frombuffer(text, np.uint8)})
        return hashlib.blake2b(content, digest_size=_SEAL_BYTES).digest() + content

    def _utterance(self, row: int, measured: bool = True) -> Utterance:
        block = bisect_right(self.columns.block_rows, row)
        cached, lines = self._block
        if cached != block:
            lines = self._read_block(block)
            self._block = block, lines
        first = int(self.columns.block_rows[block - 1]) if block else 0
        said, places = lines[row - first].split(b"\t")
        values = _DECODER.decode(said)
        audio_in, voice_in = _folder_names(places)
        if "audio" in values:
            values["audio"] = self._path(audio_in, values["audio"])
        if "prompt_audio" in values:
            values["prompt_audio"] = self._path(voice_in, values["prompt_audio"])
        if "keywords" in values:
            values["keywords"] = tuple(values["keywords"])
        seconds = float(self.columns.seconds[row]) if measured else values.get("duration", math.nan)
        values["duration"] = None if math.isnan(seconds) else seconds
        return Utterance(**{"audio": "", "text": "", **values})

    def _path(self, folder: str, name: str) -> str:
        if folder.startswith(_HERE):
            return f"{self.folder.rstrip('/')}/{folder.removeprefix(_HERE)}{name}"
        return folder + name

    def _read_block(self, block: int) -> list[bytes]:
        ends = self.columns.block_ends
        start = int(ends[block - 1]) if block else 0
        packed = self.columns.records[start : int(ends[block])].tobytes()
        return zlib.decompressobj().decompress(packed, _MAX_BLOCK_BYTES).split(b"\n")


def read_store(file: IO[bytes], folder: str) -> tuple[Utterances, dict[str, Any]]:
    """What `Utterances.to_bytes` wrote.

    Args:
        folder: absolute folder of the manifest, as it is now.

    Raises:
        DamagedStoreError: the bytes are not what was written, or of another release.
        OSError: the file cannot be read.
    """
    seal, content = file.read(_SEAL_BYTES), file.read()
    if hashlib.blake2b(content, digest_size=_SEAL_BYTES).digest() != seal:
        raise DamagedStoreError("the checksum is wrong")
    try:
        arrays = load(content)
        header, rows = json.loads(arrays.pop("header").tobytes()), arrays.pop("rows")
        return Utterances(Columns(**arrays), folder, rows), header
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise DamagedStoreError(str(error)) from error


class StoreWriter:
    """Takes utterances one by one, in the manifest's order."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._below = folder.rstrip("/") + "/"
        self._pending: list[bytes] = []
        self._records, self._ids, self._contents = bytearray(), bytearray(), bytearray()
        self._block_ends, self._block_rows, self._id_ends = array("q"), array("q"), array("q")
        self._lines, self._seconds, self._languages = array("i"), array("d"), array("i")
        self._first: dict[str | None, int] = {}

    def add(self, utterance: Utterance, line: int) -> None:
        """One more row, the file of which has not been looked at."""
        said, places = self._record(utterance)
        self._contents += hashlib.blake2b(said, digest_size=8).digest()
        self._ids += utterance.id.encode("utf-8", "surrogatepass")
        self._id_ends.append(len(self._ids))
        self._lines.append(line)
        self._seconds.append(math.nan if utterance.duration is None else utterance.duration)
        self._languages.append(self._first.setdefault(utterance.language, len(self._languages)))
        self._pending.append(b"%b\t%b" % (said, places))
        if len(self._pending) == BLOCK:
            self._flush()

    def finish(self) -> Utterances:
        """All that was added."""
        self._flush()
        rows = len(self._id_ends)
        columns = Columns(
            records=np.frombuffer(self._records, np.uint8),
            block_ends=np.array(self._block_ends, np.int64),
            block_rows=np.array(self._block_rows, np.int64),
            ids=np.frombuffer(self._ids, np.uint8),
            id_ends=np.array(self._id_ends, np.int64),
            contents=np.frombuffer(self._contents, np.uint64),
            lines=np.array(self._lines, np.int32),
            seconds=np.array(self._seconds, np.float64),
            languages=np.array(self._languages, np.int32),
            voice_seconds=np.full(rows, np.nan),
            stamps=np.zeros(rows, np.uint64),
            sounds=np.zeros(rows, np.uint64),
        )
        return Utterances(columns, self._folder)

    def _flush(self) -> None:
        if self._pending:
            self._records += zlib.compress(b"\n".join(self._pending), 1)
            self._block_ends.append(len(self._records))
            self._block_rows.append(len(self._id_ends))
            self._pending = []

    def _record(self, utterance: Utterance) -> tuple[bytes, bytes]:
        """What is said of an utterance, and the folders of its audio, each as one line of ASCII without tabs."""
        fields = zip(_DEFAULTS.items(), _FIELDS(utterance), strict=True)
        values = {name: value for (name, default), value in fields if value != default}
        audio_in = voice_in = ""
        if utterance.audio:
            audio_in, values["audio"] = self._split(utterance.audio)
        if utterance.prompt_audio is not None:
            voice_in, values["prompt_audio"] = self._split(utterance.prompt_audio)
        return _ENCODER.encode(values).encode("ascii"), _folders(audio_in, voice_in)

    def _split(self, path: str) -> tuple[str, str]:
        """(folder with its slash, name); the manifest's own folder is `_HERE`."""
        end = path.rfind("/") + 1
        if self._folder and path.startswith(self._below):
            return _HERE + path[len(self._below) : end], path[end:]
        return path[:end], path[end:]


@lru_cache(maxsize=4096)  # many files lie in one folder
def _folders(*names: str) -> bytes:
    return json.dumps(names).encode("ascii")


@lru_cache(maxsize=4096)
def _folder_names(folders: bytes) -> tuple[str, str]:
    audio_in, voice_in = json.loads(folders)
    return audio_in, voice_in


def joined(parts: Iterable[Utterances], folder: str) -> Utterances:
    """Whole stores one after another."""
    columns = [part.columns for part in parts]

    def end_to_end(name: str) -> np.ndarray:
        return np.concatenate([getattr(column, name) for column in columns])

    def moved(name: str, lengths: Sequence[int]) -> np.ndarray:
        """Ends or rows within each part, as those within the whole."""
        before = np.cumsum([0, *lengths[:-1]])
        return np.concatenate([getattr(c, name) + start for c, start in zip(columns, before, strict=True)])

    whole = {field.name: end_to_end(field.name) for field in fields(Columns)}
    whole["languages"] = moved("languages", [len(c.id_ends) for c in columns]).astype(np.int32)
    whole["block_ends"] = moved("block_ends", [len(c.records) for c in columns])
    whole["block_rows"] = moved("block_rows", [len(c.id_ends) for c in columns])
    whole["id_ends"] = moved("id_ends", [len(c.ids) for c in columns])
    return Utterances(Columns(**whole), folder)


def stored(utterances: Sequence[Utterance]) -> Utterances:
    """The same utterances in this form."""
    if isinstance(utterances, Utterances):
        return utterances
    writer = StoreWriter("")
    for number, utterance in enumerate(utterances, start=1):
        writer.add(utterance, number)
    return writer.finish()
