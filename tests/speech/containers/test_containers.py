"""Sound inside larger files is decoded where it lies, as if it were in a file of its own."""

from __future__ import annotations

import io
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speech.audio import audio_channels, audio_seconds, load_audio
from speech.containers import Cell, Span, container_of, locate, open_bytes, parquet
from speech.errors import InputError
from speech.manifests.recordings import _sample
from speech.records import Utterance

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
numbers = st.integers(0, 2**50)


@given(names, names, numbers, numbers)
def test_a_place_is_read_as_it_was_written(file: str, name: str, one: int, other: int) -> None:
    for place in (Span(f"/a/{file}", one, other, name), Span(file, one, other), Cell(f"/a/{file}", name, one, other)):
        assert locate(str(place)) == place
        assert container_of(str(place)) == place.file
        assert "/" not in str(place).removeprefix(place.file)


@pytest.mark.parametrize(
    "path", ["a#1.wav", "a.tar#offset=1", "#offset=1&size=2", "a.tar#offset=-1&size=2", "b/c#d=1&e=2"]
)
def test_other_paths_with_a_hash_are_files(path: str, write_tone, tmp_path: Path) -> None:
    assert locate(path) is None
    file = write_tone(tmp_path / path, format="WAV")
    assert audio_seconds(file) == 1.0


def utterance(audio: object, **fields: object) -> Utterance:
    return Utterance(id="u", audio=str(audio), text="x", **fields)


def places(folder: Path, file: Path) -> list[Span | Cell]:
    """The same sound between others in a tar and in a parquet file."""
    sound = file.read_bytes()
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name in ("before", file.name, "behind"):
            member = tarfile.TarInfo(name)
            data = sound if name == file.name else b"noise" * 999
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(folder / "s.tar") as tar:
        found = tar.getmember(file.name)
    rows = [{"bytes": data, "path": "x"} for data in (b"noise", b"noise", None, sound)]
    pyarrow.parquet.write_table(pyarrow.table({"sound": rows}), folder / "s.parquet", row_group_size=2)
    return [
        Span(str(folder / "s.tar"), found.offset_data, found.size, file.name),
        Cell(str(folder / "s.parquet"), "sound.bytes", 1, 1),
    ]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.aiff", {}),
        ("a.sph", {"format": "NIST"}),
    ],
)
def test_the_sound_is_that_of_the_file(tmp_path: Path, write_tone, name: str, options: dict[str, str]) -> None:
    file = write_tone(tmp_path / name, seconds=2.0, **options)
    for place in places(tmp_path, file):
        assert audio_seconds(str(place)) == audio_seconds(file)
        assert audio_channels(str(place)) == 1
        assert _sample(str(place)) == _sample(str(file))
        for fields in ({}, {"start": 0.5, "duration": 1.0}, {"start": 1.2}):
            wave = load_audio(utterance(place, **fields), 16_000)
            np.testing.assert_array_equal(wave, load_audio(utterance(file, **fields), 16_000))


@pytest.mark.parametrize("name", ["a.wav", "a.ogg", "a.flac", "a.sph"])
def test_a_sound_that_breaks_off_is_found_as_in_a_file(tmp_path: Path, write_tone, name: str) -> None:
    file = write_tone(tmp_path / name, seconds=2.0, **({"format": "NIST"} if name == "a.sph" else {}))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError) as expected:
        load_audio(utterance(file), 16_000)
    for place in places(tmp_path, file):
        with pytest.raises(InputError) as caught:
            load_audio(utterance(place), 16_000)
        assert caught.value.problems[0].message == expected.value.problems[0].message


def test_what_is_not_there_is_said(tmp_path: Path, write_tone) -> None:
    span, cell = places(tmp_path, write_tone(tmp_path / "a.wav"))
    for place, says in (
        (Span(span.file, span.offset, 2**40), "breaks off"),
        (Span(span.file, span.offset + 1000, 500), "cannot be decoded"),
        (Span(str(tmp_path / "gone.tar"), 0, 10), "no such file"),
        (Span(str(tmp_path), 0, 10), "is not a file"),
        (Cell(cell.file, cell.column, 2, 0), "has 2 row groups"),
        (Cell(cell.file, cell.column, 1, 2), "the row group has 2 rows"),
        (Cell(cell.file, cell.column, 1, 0), "holds no bytes"),
        (Cell(cell.file, "other", 1, 0), "has no column 'other'"),
        (Cell(cell.file, cell.column, 0, 0), "cannot be decoded"),
        (Cell(span.file, cell.column, 0, 0), "cannot be read as parquet"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            audio_seconds(str(place))
        assert caught.value.problems[0].file.startswith(place.file)


def test_a_span_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(200)))
    with open_bytes(str(Span(str(tmp_path / "f"), 50, 100))) as file:
        assert file.read() == bytes(range(50, 150))
        assert file.seek(-10, io.SEEK_END) == 90
        assert file.read(99) == bytes(range(140, 150))
        assert file.read(1) == b""
        assert file.seek(20) == 20
        assert (file.read(1), file.tell()) == (bytes([70]), 21)


def test_cells_are_found_in_any_order_and_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours cost one pass; what lies further back is read again, and no more than the last rows are kept."""
    values = [random.Random(i).randbytes(2_000) for i in range(300)]
    path = str(tmp_path / "v.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"v": values}), path, row_group_size=150)
    begun: list[Cell] = []
    begin = parquet._Group._begin
    monkeypatch.setattr(parquet._Group, "_begin", lambda group, cell: begun.append(cell) or begin(group, cell))
    cells = [Cell(path, "v", i // 150, i % 150) for i in range(300)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(parquet.read_cell, cells)) == values
    assert len(begun) < 10
    for i in random.Random(0).sample(range(300), 50):
        assert parquet.read_cell(cells[i]) == values[i]
    assert all(len(group._kept) <= parquet._KEPT_BATCHES for group in parquet._GROUPS.values())
    assert len(parquet._GROUPS) <= 2


def test_a_parquet_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "v.parquet")
    for value in (b"one", b"two"):
        pyarrow.parquet.write_table(pyarrow.table({"v": [value]}), path)
        assert parquet.read_cell(Cell(path, "v", 0, 0)) == value


def test_only_the_header_of_a_member_is_read_for_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "long.flac", np.random.default_rng(0).uniform(-1, 1, 2_000_000), 16_000)
    place, _ = places(tmp_path, tmp_path / "long.flac")
    read: list[int] = []
    pread = parquet.os.pread
    monkeypatch.setattr("os.pread", lambda *args: read.append(args[1]) or pread(*args))
    assert audio_seconds(str(place)) == 125.0
    assert sum(read) < 300_000
