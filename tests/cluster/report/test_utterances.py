"""Rows of utterances and their sounds."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster.report import sounds, utterances
from cluster.report.runs import RunRecord, read_run
from cluster.report.sounds import BANDS, SoundShelf, add_sounds, spectrogram
from cluster.report.utterances import judged, utterance_rows
from speech.edits import EditCounts, word_alignment, word_edits
from speech.errors import UserError
from speech.manifests import load_manifest
from speech.manifests.store import stored
from tests.cluster.report.conftest import WriteRun, heard, said


def tone(path: Path, seconds: float = 0.5, hertz: float = 200.0, rate: int = 16_000) -> str:
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sign(np.sin(2 * np.pi * hertz * time)), rate)
    return str(path)


def shelved(run: RunRecord, budget: int = 10**6) -> tuple[list[dict], SoundShelf]:
    rows, shelf = utterance_rows([run])["rows"], SoundShelf(budget)
    add_sounds([run], rows, shelf)
    return rows, shelf


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_alignment_has_the_counted_edits(language: str) -> None:
    reference, hypothesis = {
        "en": ("turn on the twenty one lights", "turn the 21 nights please"),
        "zh": ("打开客厅的灯", "打开厅里的等"),
    }[language]
    chunks = word_alignment(reference, hypothesis, language)
    sizes = {
        kind: sum(max(len(c.reference), len(c.hypothesis)) for c in chunks if c.kind == kind)
        for kind in ("equal", "substitute", "delete", "insert")
    }
    counts = word_edits(reference, hypothesis, language)
    assert list(sizes.values()) == [counts.hits, counts.substitutions, counts.deletions, counts.insertions]


def test_words_before_and_after(write_run: WriteRun) -> None:
    before = [heard("a", "turn on the light", "please turn on light"), heard("b", "stop", "stop")]
    after = [heard("a", "turn on the light", "turn on the night"), heard("b", "stop", "stop")]
    first, second = utterance_rows([read_run(write_run(before=before, after=after))])["rows"]
    assert (first["id"], first["change"], second["id"], second["change"]) == ("a", -1, "b", 0)
    (side,) = first["sides"]["before"]["heard"]
    assert side["words"] == [["i", "please"], ["=", "turn on"], ["d", "the"], ["=", "light"]]
    assert side["edits"] == [0, 1, 1]
    assert first["sides"]["after"]["heard"][0]["words"][-1] == ["s", "light", "night"]


def test_only_before(write_run: WriteRun) -> None:
    (row,) = utterance_rows([read_run(write_run(before=[heard("a", "stop", "top")], status=None))])["rows"]
    assert row["change"] is None and row["errors"] == 1 and row["sides"].keys() == {"before"}


def test_most_changed_rows_stay(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utterances, "ROWS", 1)
    before = [heard("a", "stop", "stop"), heard("b", "stop", "top")]
    after = [heard("a", "stop", "stop"), heard("b", "stop", "stop")]
    found = utterance_rows([read_run(write_run(before=before, after=after))])
    assert [row["id"] for row in found["rows"]] == ["b"] and found["left_out"] == 1


def test_both_judges_are_counted_on_common_utterances(write_run: WriteRun) -> None:
    before = [said("a", "stop the light", "stop a light", "stop"), said("b", "stop", "stop it", "stop it")]
    after = [
        said("a", "stop the light", "stop the light", "stop a light"),
        said("b", "stop", None, None, problems=["x"]),
    ]
    edits = judged(read_run(write_run(before=before, after=after)))
    assert edits["training judge"] == {"before": EditCounts(2, 1, 0, 0), "after": EditCounts(3, 0, 0, 0)}
    assert edits["second judge"]["before"].deletions == 2 and edits["second judge"]["after"].substitutions == 1


def test_what_was_heard_can_be_played(write_run: WriteRun, tmp_path: Path) -> None:
    lines = [heard("a", "stop", "stop", audio=tone(tmp_path / "a.wav"), seconds=0.5)]
    (row,), shelf = shelved(read_run(write_run(before=lines, after=lines)))
    sound = shelf.sounds[row["sound"]]
    assert sound.keys() == {"uri"} and len(shelf.sounds) == 1
    kind, _, content = sound["uri"].partition(";base64,")
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:audio/mpeg" and rate == 16_000 and len(wave) / rate == pytest.approx(0.5, abs=0.15)


def test_what_was_said_has_spectrogram_and_f0(write_run: WriteRun, tmp_path: Path) -> None:
    lines = [said("a", "stop", "stop", "stop", wave=tone(tmp_path / "a.wav"), seconds=0.5)]
    (row,), shelf = shelved(read_run(write_run(before=lines, after=lines)))
    sound = shelf.sounds[row["sides"]["after"]["sound"]]
    frames = len(base64.b64decode(sound["bands"])) // BANDS
    voiced = [value for value in sound["f0"] if value]
    assert frames == len(sound["f0"]) == 25 and len(voiced) > 15 and np.median(voiced) == pytest.approx(200, abs=3)


def test_a_moved_folder_has_its_sounds(write_run: WriteRun, tmp_path: Path) -> None:
    path = write_run(after=[said("a", "stop", "stop", "stop", wave="/elsewhere/audio/after/a-0.wav")])
    (path / "audio" / "after").mkdir(parents=True)
    tone(path / "audio" / "after" / "a-0.wav")
    (row,), shelf = shelved(read_run(path))
    assert row["sides"]["after"]["sound"] in shelf.sounds


def test_a_sound_that_is_gone_or_no_sound_is_a_note(write_run: WriteRun, tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"RIFFnonsense")
    lines = [heard("a", "stop", "stop", audio="/gone/a.wav"), heard("b", "stop", "stop", audio=str(tmp_path / "b.wav"))]
    rows, shelf = shelved(read_run(write_run(after=lines)))
    assert not shelf.sounds and "no such file" in rows[0]["sound_note"] and "cannot be" in rows[1]["sound_note"]


def test_the_budget_bounds_the_sounds(write_run: WriteRun, tmp_path: Path) -> None:
    before = [heard(name, "stop", "stop", audio=tone(tmp_path / f"{name}.wav"), seconds=0.5) for name in "abc"]
    after = [line | {"hypothesis": "top"} if line["id"] == "c" else line for line in before]
    run = read_run(write_run(before=before, after=after))
    size = len(next(iter(shelved(run)[1].sounds.values()))["uri"])
    rows, shelf = shelved(run, budget=size + size // 2)
    assert len(shelf.sounds) == 1 and shelf.left_out == 2
    assert rows[0]["id"] == "c" and "sound" in rows[0], "the most changed is kept"


def test_a_part_of_a_file_is_found_by_the_kept_manifest(write_run: WriteRun, tmp_path: Path) -> None:
    audio = tone(tmp_path / "long.wav", seconds=3.0)
    manifest = tmp_path / "test.jsonl"
    manifest.write_text(f'{{"id": "a", "audio": "{audio}", "text": "stop", "start": 1.0, "duration": 0.5}}\n')
    path = write_run(after=[heard("a", "stop", "stop", audio=audio, seconds=0.5)])
    (row,), shelf = shelved(read_run(path))
    assert "a part of a file" in row["sound_note"] and not shelf.sounds
    (path / "data").mkdir()
    (path / "data" / "test.utterances").write_bytes(stored(load_manifest(manifest).utterances).to_bytes({}))
    (row,), shelf = shelved(read_run(path))
    content = base64.b64decode(shelf.sounds[row["sound"]]["uri"].partition(",")[2])
    assert soundfile.info(io.BytesIO(content)).duration < 0.8


def test_without_pyworld_there_is_a_spectrogram_and_a_note(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise UserError("F0 needs the package pyworld")

    monkeypatch.setattr(sounds, "f0_contour", missing)
    run = read_run(write_run(after=[said("a", "stop", "stop", "stop", wave=tone(tmp_path / "x.wav"))]))
    (row,), shelf = shelved(run)
    assert shelf.notes == ["F0 needs the package pyworld"]
    assert shelf.sounds[row["sides"]["after"]["sound"]].keys() == {"uri", "bands", "seconds"}


def test_a_tone_is_a_line_at_its_height() -> None:
    rate = 16_000
    low, high = (np.sin(2 * np.pi * f * np.arange(rate) / rate).astype(np.float32) for f in (300.0, 3000.0))
    (first, hop), (second, _) = spectrogram(low, rate), spectrogram(high, rate)
    assert hop == pytest.approx(0.02) and first.shape == (50, BANDS)
    assert len(set(first[5:45].argmax(axis=1))) == 1 and second[20].argmax() > first[20].argmax() + 15
    assert spectrogram(np.tile(low, 60), rate)[0].shape[0] <= sounds.FRAMES
