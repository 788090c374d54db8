"""What is wrong with data sets of other tools: all of it at once, each with file, line and key."""

from __future__ import annotations

import csv
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from speech.audio import load_audio
from speech.errors import InputError, UserError
from speech.manifests import load_manifest
from tests.speech.manifests.foreign.data_sets import MAKERS, RATE, add, data_set, lhotse, write_recordings
from tests.speech.manifests.manifest_files import problems_of, write_lines


@pytest.fixture
def recordings(tmp_path):
    return write_recordings(tmp_path)


def test_lhotse(tmp_path, recordings):
    from lhotse import CutSet, SupervisionSegment

    mono = next(iter(CutSet.from_file(lhotse(tmp_path, recordings))))
    two = [SupervisionSegment("a", "rec", 0.1, 0.2, text="one", language="English"),
           SupervisionSegment("b", "rec", 0.3, 0.3, text="two", speaker="x")]  # fmt: skip
    cuts = [
        mono.truncate(offset=0.05, duration=0.65).with_id("good").map_supervisions(lambda s: s),
        mono.with_id("mixed").pad(2.0),
        mono.with_id("fast").perturb_speed(1.1),
        mono.with_id("half").truncate(duration=0.3),
        mono.with_id("silent").drop_supervisions(),
        mono.with_id("same").resample(8_000),
    ]
    cuts[0].supervisions = two
    path = tmp_path / "bad.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    (first, *_, last) = (json.loads(line) for line in path.read_text().splitlines())
    sources = [
        {"type": "command", "channels": [0], "source": "rm -rf ."},
        {"type": "url", "channels": [0], "source": "https://x.org/a.wav"},
        {"type": "file", "channels": [0], "source": "gone.wav"},
    ]
    others = [last | {"id": s["type"], "recording": last["recording"] | {"sources": [s]}} for s in sources]
    features = {key: value for key, value in last.items() if key != "recording"} | {"id": "f", "features": {}}
    partly = first | {"id": "p", "supervisions": [
        {**first["supervisions"][0], "id": "c"},
        {**first["supervisions"][1], "id": "d", "text": "", "language": "Klingon"},
        {**first["supervisions"][1], "id": "e", "start": "0"}]}  # fmt: skip
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in (*others, features, partly))
    found = problems_of(path)
    assert [problem.split("; ")[0] for problem in found] == [
        "2: type: is a mix of cuts, whose sound is in no file",
        "3: recording: is changed when it is read (Speed), by Lhotse alone",
        "4: supervisions: 'sup-r1.wav' is at 0 s … 0.7 s of a cut of 0.3 s: of what its text says a part is cut off",
        "5: supervisions: is empty: nothing says what is spoken",
        "7: recording: its source is a command",
        "8: recording: its source is an address on the network",
        f"9: recording: {tmp_path}/gone.wav: no such file",
        "10: recording: missing",
        "11: supervisions: is empty",
        "11: supervisions: 'Klingon' is not an ISO 639-1 code such as 'en' or 'zh'",
        "11: supervisions: 'start' must be a number of seconds, is '0'",
    ]
    # A cut of which one supervision is bad keeps the others.
    good = load_manifest(path, on_bad="skip").utterances
    assert [(u.id, u.text, u.language, u.start, u.duration, u.speaker) for u in good] == [
        ("a", "one", "en", 0.15, 0.2, None),
        ("b", "two", None, 0.35, 0.3, "x"),
        ("same", "turn on the light", "en", 0.0, 0.7, "s1"),
        ("c", "one", "en", 0.15, 0.2, None),
    ]


def test_lhotse_channels(tmp_path, recordings):
    from lhotse import CutSet

    line = json.loads(lhotse(tmp_path, recordings).read_text().splitlines()[1])
    said = line["supervisions"][0]
    calls = [
        line | {"id": f"c{c}", "type": "MonoCut", "channel": c, "supervisions": [said | {"id": f"s{c}", "channel": c}]}
        for c in (0, 1, 2)
    ]
    path = write_lines(tmp_path / "calls.jsonl", *calls)
    assert [u.channel for u in load_manifest(path, on_bad="skip").utterances] == [0, 1]
    assert problems_of(path) == ["3: supervisions: names the channel 2, which no single source has; give one channel"]
    for cut, ours in zip(
        CutSet.from_file(path).subset(first=2), load_manifest(path, on_bad="skip").utterances, strict=True
    ):
        np.testing.assert_array_equal(cut.load_audio()[0], load_audio(ours, RATE))


def test_nemo(tmp_path, recordings):
    good = {"audio_filepath": "r3.wav", "text": "x", "offset": 0.2, "duration": 0.3, "lang": "en-US"}
    path = write_lines(
        tmp_path / "m.json",
        good,
        good,
        {"audio_filepath": "r1.wav", "duration": 0.5},
        {"audio_filepath": ["r1.wav", "r2.wav"], "text": "x"},
        {"audio_filepath": "r1.wav", "text": "x", "duration": "1", "lang": "xx"},
        {"audio_filepath": "r1.wav", "text": "hallo", "source_lang": "en", "target_lang": "de"},
        {"audio_filepath": "r1.wav", "text": "x", "offset": 9, "duration": 1},
        '{"audio_filepath": ',
    )
    assert [problem.split(";")[0] for problem in problems_of(path)] == [
        "3: text: missing",
        "4: audio_filepath: must be a string, is a list",
        "5: lang: 'xx' is not an ISO 639-1 code such as 'en' or 'zh'",
        "5: duration: must be a number of seconds, is a string",
        "6: target_lang: the text is a translation, from 'en'",
        "7: duration: segment 9 s … 10 s lies outside the file, which lasts 0.70 s",
        "8: invalid JSON: Expecting value at column 19",
    ]
    found = load_manifest(path, on_bad="skip").utterances
    assert [(u.id, u.start, u.duration, u.language) for u in found] == [
        ("r3.wav", 0.2, 0.3, "en"),
        ("r3.wav#2", 0.2, 0.3, "en"),
    ]


def test_common_voice(tmp_path, recordings):
    path = tmp_path / "train.tsv"
    rows = [
        ["s", "r1.wav", 'say "hi" to', "en", ""],
        ["s", "r2.wav", "", "zh-TW", ""],
        ["", "r3.wav", "x", "Klingon", ""],
        ["s", "gone.mp3", "x", "en", ""],
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([["client_id", "path", "sentence", "locale", "segment"], *rows])
        file.write("s\tr1.wav\tx\n")
        file.write('s\tr1.wav\t"a quote that is not closed\ten\t\n')
    assert problems_of(path) == [
        "3: sentence: missing",
        "4: locale: 'Klingon' is not an ISO 639-1 code such as 'en' or 'zh'",
        f"5: path: {tmp_path}/gone.mp3: no such file",
        "6: has 3 fields, the first line names 5",
    ]
    one, two = load_manifest(path, on_bad="skip").utterances
    assert (one.text, two.text, two.id) == ('say "hi" to', '"a quote that is not closed', "r1.wav#2")
    path.write_text("client_id\tpath\tsentence\n\xff\n", encoding="latin-1")
    assert problems_of(path) == ["2: is not UTF-8 (byte 0xff at position 1)"]


def test_tar(tmp_path, recordings):
    sound = Path(recordings[0].audio).read_bytes()
    first, second = tmp_path / "s-0.tar", tmp_path / "s-1.tar"
    with tarfile.open(first, "w") as tar:
        add(tar, "u1.wav", sound)
        add(tar, "u1.json", b'{"text": "one", "language": "English", "speaker_id": 7}')
        add(tar, "u2.wav", sound[: len(sound) // 2])
        add(tar, "u2.txt", b"two")
        add(tar, "u3.json", b'{"text": "three"}')
        add(tar, "u4.wav", sound)
        add(tar, "u4.flac", sound)
        add(tar, "u4.json", b'{"text": "three", "text": "four"}')
    with tarfile.open(second, "w") as tar:
        add(tar, "u1.wav", sound)
        add(tar, "u1.txt", "köln".encode("latin-1"))
        add(tar, "u1b.wav", sound)
        add(tar, "u1b.json", b'{"sentence": 5}')
        add(tar, "u5.wav", b"no sound")
        add(tar, "u5.txt", b"five")
        add(tar, "u1.wav", sound)
        add(tar, "u1.txt", b"again")
    with pytest.raises(InputError) as caught:
        load_manifest(tmp_path / "s-{0..1}.tar")
    found = [str(problem).removeprefix(f"{tmp_path}/").split(" (")[0] for problem in caught.value.problems]
    start = 512 + (len(sound) + 511) // 512 * 512 + 1024 + 512
    assert found == [
        f"s-0.tar:2: audio: {first}#member=u2.wav&offset={start}&size={len(sound) // 2}: breaks off: its header "
        "declares 0.70 s, 0.35 s are there",
        "s-0.tar:3: u3: has no recording, but json; expected one",
        "s-0.tar:4: u4: has the recordings wav, flac; expected one",
        "s-0.tar:4: u4.json: text: occurs twice in one object",
        "s-1.tar:1: u1.txt: is not UTF-8",
        "s-1.tar:2: u1b.json: sentence: must be a string, is a number",
        found[6],
    ]
    assert found[6].startswith("s-1.tar:3: audio:")
    assert "u5.wav" in found[6]
    assert "cannot be decoded" in found[6]
    manifest = load_manifest(tmp_path / "s-{0..1}.tar", on_bad="skip")
    assert [(u.id, u.text, u.language, u.speaker) for u in manifest.utterances] == [
        ("u1", "one", "en", "7"),
        ("u1#2", "again", None, None),
    ]
    assert list(manifest.places) == [(str(first), 1), (str(second), 4)]


def test_a_tar_that_breaks_off(tmp_path, recordings):
    path = MAKERS["tar"][1](tmp_path, recordings)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (problem,) = problems_of(path)
    assert problem.startswith("2: is no tar from here on, or breaks off")
    assert [u.id for u in load_manifest(path, on_bad="skip").utterances] == ["r1.wav"]
    with pytest.raises(InputError, match=r"s-1\.tar: no such file"):
        load_manifest(tmp_path / "s-{0..1}.tar")
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        add(tar, "u1.txt", b"one")
    with pytest.raises(InputError, match="is a compressed tar"):
        load_manifest(tmp_path / "s.tar.gz")


def test_parquet(tmp_path, recordings):
    sound = [Path(u.audio).read_bytes() for u in recordings]
    rows = [
        {"audio": {"bytes": sound[0], "path": None}, "text": "one", "lang": "English", "speaker": 3},
        {"audio": {"bytes": None, "path": "r2.wav"}, "text": "two", "lang": None, "speaker": None},
        {"audio": {"bytes": None, "path": "gone.wav"}, "text": "three", "lang": "xx", "speaker": None},
        {"audio": None, "text": "four", "lang": None, "speaker": None},
        {"audio": {"bytes": sound[2][:1000], "path": "r3.wav"}, "text": None, "lang": None, "speaker": None},
        {"audio": {"bytes": sound[2][:1000], "path": "r3.wav"}, "text": "six", "lang": None, "speaker": None},
    ]
    path = tmp_path / "m.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    assert [problem.split(";")[0] for problem in problems_of(path)] == [
        "3: lang: 'xx' is not an ISO 639-1 code such as 'en' or 'zh'",
        "4: audio: missing",
        "5: text: missing",
        f"6: audio: {path}#column=audio.bytes&group=1&row=1: breaks off: its header declares 1.10 s, 0.03 s are there",
    ]
    manifest = load_manifest(path, on_bad="skip")
    assert [(u.id, u.language, u.speaker) for u in manifest.utterances] == [("m-1", "en", "3"), ("r2.wav", None, None)]
    assert list(manifest.places) == [(str(path), 1), (str(path), 2)]

    pyarrow.parquet.write_table(pyarrow.table({"audio": [[0.5]], "text": ["x"]}), path)
    assert "`Audio(decode=False)`" in problems_of(path)[0]
    pyarrow.parquet.write_table(pyarrow.table({"audio": ["r1.wav"], "words": ["x"]}), path)
    assert problems_of(path) == ["has no column with the text, but audio, words"]
    path.write_bytes(path.read_bytes()[:-9])
    assert problems_of(path)[0].startswith("cannot be read as parquet")


def test_large_row_groups_and_mixed_splits_are_refused(tmp_path, recordings, monkeypatch):
    monkeypatch.setattr("speech.manifests.foreign.parquet.MAX_GROUP_BYTES", 50_000)
    path = MAKERS["parquet"][1](tmp_path, recordings)
    assert problems_of(path)[0].startswith("1: audio: row group 0 holds 0.0 GiB of sound")
    data_set(recordings).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    path.rename(tmp_path / "train-00000-of-00001.parquet")
    assert problems_of(tmp_path)[0].startswith("holds the splits test, train; name the files of one")


def test_saved_data_sets(tmp_path, recordings):
    from datasets import DatasetDict

    data = data_set(recordings)
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"several saved data sets: give one of test, train"):
        load_manifest(tmp_path / "both")
    assert len(load_manifest(tmp_path / "both" / "train").utterances) == 3
    bad = data.map(lambda row: {"locale": "Klingon" if row["id"] == "r2.wav" else "en"})
    bad.rename_column("sentence", "words").save_to_disk(tmp_path / "words")
    assert problems_of(tmp_path / "words") == ["has no column with the text, but audio, words, locale, speaker_id, id"]
    bad.save_to_disk(tmp_path / "bad")
    assert problems_of(tmp_path / "bad") == ["2: locale: 'Klingon' is not an ISO 639-1 code such as 'en' or 'zh'"]
    (file,) = (tmp_path / "bad").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:500])
    assert "cannot be read as a stream of Arrow" in problems_of(tmp_path / "bad")[0]
    (tmp_path / "bad" / "state.json").write_text("{}")
    assert "is no state of `save_to_disk`" in problems_of(tmp_path / "bad")[0]


def test_a_gzip_that_breaks_off(tmp_path, recordings):
    path = MAKERS["ours, gzip"][1](tmp_path, recordings)
    path.write_bytes(path.read_bytes()[:-12])
    assert problems_of(path)[-1].split(": ", 1)[1].startswith("cannot be decompressed")


@pytest.mark.parametrize("name", ["parquet", "save_to_disk, bytes"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, recordings, monkeypatch, name):
    path = MAKERS[name][1](tmp_path, recordings)
    for module in [module for module in sys.modules if module.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow .*speechrl\[data\]"):
        load_manifest(path)


def test_other_folders_are_refused_with_what_was_tried(tmp_path):
    with pytest.raises(InputError) as caught:
        load_manifest(tmp_path)
    assert "without state.json (`save_to_disk`), and without .parquet or .tar files" in str(caught.value)
    assert "WebDataset tars" in str(caught.value)
    (tmp_path / "m.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="this looks like"):
        load_manifest(MAKERS["tar"][1](tmp_path, write_recordings(tmp_path)), format="nemo")


def test_cuts_that_are_no_cuts_are_bad_lines(tmp_path, recordings):
    line = json.loads(lhotse(tmp_path, recordings).read_text().splitlines()[0])
    odd = [{"type": [1]}, {"recording": line["recording"] | {"transforms": 5}}, {"duration": 10**400},
           {"supervisions": [5]}, {"recording": line["recording"] | {"sources": [{"channels": 0}]}}]  # fmt: skip
    path = write_lines(tmp_path / "odd.jsonl", line, *(line | part for part in odd))
    assert [problem.split(":")[0] + problem.split(":")[1] for problem in problems_of(path)] == [
        "2 type",
        "3 recording",
        "4 duration",
        "5 supervisions",
        "6 recording",
    ]
