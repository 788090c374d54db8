"""Long manifests: what is read once is not read again, unless something has changed."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio import AudioLimits
from speech.errors import InputError
from speech.manifests import load_manifest
from speech.manifests.recordings import audio_seconds
from speech.manifests.scan import _spans, scan
from tests.speech.manifests.foreign.data_sets import add, tar_folder, write_recordings
from tests.speech.manifests.manifest_files import problems_of, write_lines

LINES = [
    {"id": f"ü{i}", "audio": "a.wav" if i % 2 else "b.wav", "text": f"word {i}", "duration": 0.5 + i / 100}
    for i in range(40)
]


@pytest.fixture
def long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest that counts as long, last changed an hour ago."""
    monkeypatch.setattr("speech.manifests.load.INDEXED_FROM", 10)
    monkeypatch.setattr("speech.manifests.load.HEADERS_AT_START", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return aged(write_lines(folder / "m.jsonl", *LINES))


def aged(path: Path, seconds: float = 3600.0) -> Path:
    """The file, changed so many seconds ago."""
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def index_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.index")


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Manifests that were read from their first line to their last."""
    seen: list[Path] = []
    monkeypatch.setattr("speech.manifests.load.scan", lambda path, *rest: seen.append(path) or scan(path, *rest))
    return seen


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Audio files whose headers were read."""
    seen: list[str] = []
    where = "speech.manifests.recordings.audio_seconds"
    monkeypatch.setattr(where, lambda path: seen.append(path) or audio_seconds(path))
    return seen


def test_the_second_start_reads_the_index(long: Path, scans: list[Path]) -> None:
    first, second = load_manifest(long, check_audio="lazy"), load_manifest(long, check_audio="lazy")
    assert scans == [long]
    assert first == second and len(second.utterances) == 40
    assert [u.id for u in second.utterances] == [line["id"] for line in LINES]
    assert second.places[39] == (str(long), 40) and list(second.places)[38:] == list(first.places[38:])


def test_a_short_manifest_leaves_no_index(folder: Path) -> None:
    load_manifest(aged(write_lines(folder / "m.jsonl", *LINES)))
    assert not index_of(folder / "m.jsonl").exists()


def test_another_content_time_or_option_makes_the_index_anew(long: Path, scans: list[Path]) -> None:
    load_manifest(long)
    aged(write_lines(long, *LINES[:-1], LINES[-1] | {"text": "word 00"}))
    assert load_manifest(long).utterances[39].text == "word 00"
    aged(write_lines(long, *LINES[:-1], LINES[-1] | {"text": "word 01"}), 1800)
    assert load_manifest(long).utterances[39].text == "word 01"
    load_manifest(long, require_text=False)
    assert len(scans) == 4
    load_manifest(long, require_text=False)
    assert len(scans) == 4


def test_a_manifest_that_was_just_written_is_not_trusted_yet(long: Path) -> None:
    """Within one tick of the clock of a file system a second change would not show."""
    aged(long, 0)
    load_manifest(long)
    assert not index_of(long).exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:5000] + b"?" + b[5001:], os.urandom])
def test_a_damaged_index_is_made_again(long: Path, scans: list[Path], damage) -> None:
    whole = load_manifest(long)
    good = index_of(long).read_bytes()
    index_of(long).write_bytes(damage(good if damage is not os.urandom else 999))
    assert load_manifest(long) == whole
    assert len(scans) == 2 and index_of(long).read_bytes() == good


def test_where_the_data_cannot_be_written_the_index_is_in_the_cache(
    long: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(long).mkdir()  # root may write everywhere, but not replace a folder
    load_manifest(long), load_manifest(long)
    assert len(scans) == 1 and len(list((long.parent / "cache" / "speechrl").iterdir())) == 1
    (long.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(long.parent / "file"))
    assert len(load_manifest(long).utterances) == 40 and len(scans) == 2


def test_the_index_moves_with_the_data(long: Path, scans: list[Path]) -> None:
    load_manifest(long)
    moved = long.parent.rename(long.parent.with_name("moved")) / "m.jsonl"
    manifest = load_manifest(moved)
    assert len(scans) == 1
    assert {u.audio for u in manifest.utterances} == {str(moved.with_name("a.wav")), str(moved.with_name("b.wav"))}


def test_starts_at_the_same_time(long: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        manifests = list(pool.map(load_manifest, [long] * 6))
    assert all(manifest == manifests[0] for manifest in manifests)
    assert load_manifest(long) == manifests[0]
    assert {p.name for p in long.parent.iterdir() if "m.jsonl" in p.name} == {"m.jsonl", ".m.jsonl.index"}


def test_what_was_wrong_is_said_again(long: Path, scans: list[Path]) -> None:
    bad = [{"id": "x", "audio": "gone.wav", "text": "x"}, "{", LINES[0], LINES[1] | {"id": "y", "keyword": []}]
    aged(write_lines(long, *LINES, *bad))
    expected = [
        f"41: audio: {long.parent}/gone.wav: no such file",
        "42: invalid JSON: Expecting property name enclosed in double quotes at column 2",
        "43: id: duplicate 'ü0', first on line 1",
        "44: keyword: unknown key; did you mean 'keywords'?",
    ]
    assert problems_of(long) == expected and problems_of(long) == expected
    assert len(load_manifest(long, on_bad="skip").utterances) == 40 and len(scans) == 1
    (long.parent / "a.wav").rename(long.parent / "gone.wav")
    (long.parent / "a.wav").hardlink_to(long.parent / "gone.wav")
    assert problems_of(long) == expected[1:]


def test_limits_are_not_part_of_the_index(long: Path, scans: list[Path]) -> None:
    load_manifest(long)
    assert len(problems_of(long, limits=AudioLimits(max_seconds=0.6))) == 29
    assert len(load_manifest(long, limits=AudioLimits(max_seconds=0.6), on_bad="skip").utterances) == 11
    assert len(scans) == 1


def test_headers_of_stated_durations_wait_in_a_long_manifest(long: Path, opened: list[str]) -> None:
    aged(write_lines(long, *LINES, {"id": "x", "audio": "c.flac", "text": "no duration"}))
    manifest = load_manifest(long, check_audio="lazy")
    assert opened == [str(long.parent / "c.flac")]
    assert manifest.unchecked == 40 and manifest.utterances[-1].duration == 1.0
    assert load_manifest(long, check_audio="lazy").unchecked == 40 and len(opened) == 1
    assert load_manifest(long).unchecked == 0 and len(opened) == 3
    checked = load_manifest(long, check_audio="lazy")
    assert checked.unchecked == 0 and len(opened) == 3
    assert [u.duration for u in checked.utterances] == [*(line["duration"] for line in LINES), 1.0]


def test_a_changed_file_is_looked_at_again(long: Path, opened: list[str]) -> None:
    before = load_manifest(long)
    soundfile.write(long.parent / "a.wav", np.zeros(16_000, np.float32), 16_000)
    (long.parent / "b.wav").touch()
    opened.clear()
    after = load_manifest(long, check_audio="lazy")
    assert sorted(opened) == [str(long.parent / "a.wav"), str(long.parent / "b.wav")]
    same = after.utterances.columns.sounds == before.utterances.columns.sounds
    assert list(same) == [True, False] * 20
    (long.parent / "a.wav").write_bytes(b"nonsense")
    problems = problems_of(long, check_audio="lazy")
    assert len(problems) == 20 and "a.wav: cannot be decoded" in problems[0]


def test_reading_in_processes_is_the_same(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line | {"duration": 0.5} for line in LINES]
    lines[7], lines[21], lines[33] = "{", lines[2], ["no object"]
    write_lines(long, "\ufeff", *lines, "", LINES[1] | {"id": "last", "keyword": "x"})
    long.write_bytes(long.read_bytes().rstrip())
    alone = load_manifest(long, on_bad="skip")
    monkeypatch.setattr("speech.manifests.scan.SPAN_BYTES", 900)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    assert len(_spans(long)) == 3
    together = load_manifest(long, on_bad="skip")
    assert together == alone and len(alone.skipped) == 4 and len(alone.utterances) == 37
    assert list(together.places) == list(alone.places)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(99)))
    assert load_manifest(write_lines(long, *lines[:2]), on_bad="skip").utterances == alone.utterances[:2]


def test_an_interruption_leaves_nothing(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while processes read: they end, and there is no half of an index."""
    started: list[subprocess.Popen[str]] = []

    def start(*rest: object) -> subprocess.Popen[str]:
        if started:
            raise KeyboardInterrupt
        started.append(subprocess.Popen(["sleep", "60"], stderr=subprocess.PIPE, text=True))
        return started[0]

    monkeypatch.setattr("speech.manifests.scan.SPAN_BYTES", 900)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr("speech.manifests.scan._start", start)
    with pytest.raises(KeyboardInterrupt):
        load_manifest(long)
    assert started[0].wait(10) == -signal.SIGKILL
    assert not [path for path in long.parent.iterdir() if path.name.startswith(".")]


def test_a_reader_that_dies_is_named(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech.manifests.scan.SPAN_BYTES", 900)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"m\.jsonl: a process that reads it has failed: code 1"):
        load_manifest(long)


def test_a_manifest_that_changes_while_it_is_read(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan_and_edit(path: Path, *rest):
        found = scan(path, *rest)
        aged(path, 10)
        return found

    monkeypatch.setattr("speech.manifests.load.scan", scan_and_edit)
    with pytest.raises(InputError, match="changed while it was read"):
        load_manifest(long)


def test_the_index_of_shards_counts_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scans: list[Path], opened: list[str]
) -> None:
    """What is in a tar is known by the size and time of change of the tar."""
    monkeypatch.setattr("speech.manifests.load.INDEXED_FROM", 2)
    path = tar_folder(tmp_path, write_recordings(tmp_path))
    first, second = (aged(file) for file in sorted(path.iterdir()))
    whole = load_manifest(path)
    assert load_manifest(path) == whole and len(scans) == 1 and len(opened) == 3
    assert list(whole.places) == [(str(first), 1), (str(first), 2), (str(second), 1)]
    assert load_manifest(path.rename(tmp_path / "moved")).fingerprint() == whole.fingerprint()
    assert len(scans) == 2, "the index lies beside a folder, under its name"
    moved = tmp_path / "moved"
    aged(moved / second.name, 1800)
    assert [u.id for u in load_manifest(moved).utterances] == ["r1.wav", "r2.wav", "r3.wav"]
    assert len(scans) == 3
    with tarfile.open(moved / "shard-002.tar", "w") as tar:
        add(tar, "r9.wav", Path(tmp_path / "r1.wav").read_bytes())
        add(tar, "r9.txt", b"nine")
    aged(moved / "shard-002.tar")
    more = load_manifest(moved)
    assert (len(scans), more.places[3]) == (4, (str(moved / "shard-002.tar"), 1))
