"""Builders of speech for models with real weights: sentences of WordNet, general speech, recorded speech of a game."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from assets.build import amazon_queen, general_speech, wordnet
from assets.build.amazon_queen import clip_name, read_dialogue, read_table, segments
from assets.build.voices import NeuralVoice
from speech.errors import UserError
from speech.manifests import load_manifest
from tests.speech.families.hearing_checkpoints import wave


@pytest.mark.parametrize(
    ("gloss", "expected"),
    [
        ('be asleep; "the old man sat nodding by the fire"', ["The old man sat nodding by the fire."]),
        ('a; "he is tall."; "She isn\'t well-known, is she?"', ["She isn't well-known, is she."]),
        ('"the web of our life is of a mingled yarn"- Shakespeare', []),
        ('"the students drowsed in the 8 AM class"; "two words"; "he moved to the USA last year"', []),
        ("no example at all", []),
    ],
)
def test_examples_of_a_gloss(gloss: str, expected: list[str]) -> None:
    assert wordnet.examples(gloss) == expected


def write_wordnet(folder: Path) -> Path:
    (folder / "usr").mkdir(parents=True)
    numbers = "one two three four five six seven eight nine ten".split()
    for index, name in enumerate(wordnet.FILES):
        said = [f'"the {word} {name[5:]} things fell down"' for word in numbers]
        text = "  1 licence text\n" + f"00001740 {index} n 01 x 0 000 | gloss; {'; '.join(said)}\n"
        (folder / "usr" / name).write_text(text, encoding="latin-1")
    return folder


def test_sentences_are_shuffled_and_each_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data\.noun of WordNet in it; get it by: apt-get download wordnet-base"):
        wordnet.sentences(tmp_path, 1)
    texts = wordnet.sentences(write_wordnet(tmp_path / "wn"), 1)
    assert len(set(texts)) == len(texts) == 40
    assert texts == wordnet.sentences(tmp_path / "wn", 1) != wordnet.sentences(tmp_path / "wn", 2)


def test_voices_of_the_splits_are_others() -> None:
    names = {split: {voice.name for voice in general_speech.voices_of(split)} for split in ("train", "valid", "test")}
    assert len(names["train"]) > 100
    assert not names["train"] & (names["valid"] | names["test"]) and not names["valid"] & names["test"]
    for split in names:
        voices = general_speech.voices_of(split)
        assert {voice.language for voice in voices} == {"en"}
        assert 0 < sum(isinstance(voice, NeuralVoice) for voice in voices) < len(voices)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_general_speech_is_resumed_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general_speech, "SHARD", 2)
    monkeypatch.setattr(general_speech, "HELD_OUT", {"test": 2, "valid": 1})
    texts, out = wordnet.sentences(write_wordnet(tmp_path / "wn"), 1), tmp_path / "speech"
    hour = 2 * general_speech.SECONDS / 3600  # of one shard
    spoken, used = general_speech.build(out, texts, hour, 1, 7)
    assert spoken > 2 and used > 0
    splits = {split: load_manifest(out / f"{split}.jsonl").utterances for split in ("train", "valid", "test")}
    assert {split: len(items) for split, items in splits.items()} == {"train": 2, "valid": 1, "test": 2}
    assert [item.text for item in splits["test"]] == texts[:2]
    kept = out / "shards" / "test-000.jsonl"
    first = (out / "audio" / "train-000" / "train-000-000.flac").read_bytes()
    written = kept.stat().st_mtime_ns
    (out / "shards" / "train-000.jsonl").unlink()
    general_speech.build(out, texts, 2 * hour, 1, 7)
    assert kept.stat().st_mtime_ns == written
    assert (out / "audio" / "train-000" / "train-000-000.flac").read_bytes() == first
    assert [line["text"] for line in lines_of(out / "train.jsonl")] == texts[3:7]
    assert general_speech.build(out, texts, 2 * hour, 1, 7) == (0.0, 0.0)
    with pytest.raises(UserError, match="made with another --seed"):
        general_speech.build(out, texts, hour, 1, 8)
    with pytest.raises(UserError, match="--hours 9: the sentences are enough for"):
        general_speech.build(out, texts, 9, 1, 7)


def dialogue(key: int, joe: dict[int, str], person: dict[int, str], levels: int = 1) -> bytes:
    """A `.DOG` file as the game has it."""

    def strings(lines: dict[int, str]) -> bytes:
        result = b""
        for identity, text in [(0, "0"), *lines.items()]:
            item = struct.pack(">IB", identity, len(text)) + text.encode("latin-1")
            result += item + bytes(-len(item) % 4)
        return result

    start = 32 + abs(levels) * amazon_queen.LEVEL
    first = strings(joe)
    header = struct.pack(">5h", levels, key, key, len(joe), len(person))
    header += bytes(22 - len(header)) + struct.pack(">H", start + len(first))
    return bytes(20) + header.ljust(start, b"\0") + first + strings(person) + bytes(16)


def game(files: dict[str, bytes]) -> bytes:
    """A `queen.1c` of these files."""
    place = amazon_queen.TABLE + 2 + len(files) * 21
    table, body = struct.pack(">H", len(files)), b""
    for name, data in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, place + len(body), len(data))
        body += data
    return b"QTBL".ljust(amazon_queen.TABLE, b"\0") + table + body


def clip(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave(seconds)[:: 16_000 // 8_000], 8_000, format="MP3")
    return file.getvalue()


def test_lines_and_clips_of_a_dialogue() -> None:
    data = dialogue(7, {6: "Who are you then?*03", 0x1F: "*FLNot me!*02"}, {6: "I am the  chief.*02*15Go away."}, -2)
    read = read_dialogue("CHIEF2.DOG", data)
    assert (read.person, read.key) == ("CHIEF", 7)
    assert read.lines["J", 6] == "Who are you then?*03"
    assert segments(read.lines["J", 6]) == ["Who are you then?"]
    assert segments(read.lines["J", 0x1F]) == ["", "Not me!"]
    assert segments(read.lines["P", 6]) == ["I am the chief.", "", "Go away."]
    assert clip_name(7, 0x1F, "J", 2) == "07001FJ2.SB"


def test_recorded_speech_becomes_manifests_by_speaker(tmp_path: Path) -> None:
    files = {
        "CHIEF1.DOG": dialogue(7, {6: "Where is the plane?*03", 9: "Ow!"}, {6: "I am the chief.*02Go away right now."}),
        "BOB1.DOG": dialogue(8, {6: "Nice shop you have."}, {6: "Go away right now.*00*01I sell a lot of things."}),
        "LOU1.DOG": dialogue(9, {}, {0x1AB: "It never rains in here."}),
        "APE.DOG": dialogue(10, {}, {6: "Oop oop ungha oop."}),
    }
    names = "070006J1 070009J1 070006P1 070006P2 080006J1 080006P1 080006P3 0901ABP1 100006P1 07SSSSJ1".split()
    source = tmp_path / "queen.1c"
    source.write_bytes(game(files | {f"{name}.SB": clip(1.2) for name in names} | {"X.PCX": b"picture"}))
    splits = amazon_queen.build(source, tmp_path / "out")
    said = {split: [(line["id"], line["speaker"], line["text"]) for line in lines] for split, lines in splits.items()}
    # Short lines, apes, clips without a line and texts of test that train has as well are left out.
    assert said == {
        "train": [
            ("080006J1", "JOE", "Nice shop you have."),
            ("080006P1", "BOB", "Go away right now."),
            ("080006P3", "BOB", "I sell a lot of things."),
            ("070006J1", "JOE", "Where is the plane?"),
        ],
        "test": [("070006P1", "CHIEF", "I am the chief.")],
        "valid": [("0901ABP1", "LOU", "It never rains in here.")],
    }
    for split in said:
        for item in load_manifest(tmp_path / "out" / f"{split}.jsonl").utterances:
            assert item.duration is not None and 1.0 < item.duration < 1.6
    sound, rate = soundfile.read(tmp_path / "out" / "audio" / "070006P1.flac")
    assert rate == 8_000 and np.abs(sound).max() > 0.01


def test_other_files_are_refused_with_the_package(tmp_path: Path) -> None:
    source = tmp_path / "queen.1c"
    with pytest.raises(UserError, match="no such file; it is in Debian's package flight-of-the-amazon-queen"):
        amazon_queen.build(source, tmp_path / "out")
    whole = game({"BOB1.DOG": dialogue(8, {}, {})})
    for data, message in ((b"RIFF", "begins with b'RIFF'"), (whole[:20], "is cut off"), (whole[:-1], "is cut off")):
        source.write_bytes(data)
        with pytest.raises(UserError, match=message):
            amazon_queen.build(source, tmp_path / "out")
    assert set(read_table(whole)) == {"BOB1.DOG"}
