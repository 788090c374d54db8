from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speech.audio import AudioLimits, audio_seconds
from speech.errors import InputError, UserError
from speech.manifests import load_manifest, write_manifest
from speech.manifests.entries import _absolute
from speech.preparation.hypotheses import load_hypotheses
from speech.records import INSTRUCTION_END, Utterance
from tests.speech.manifests.manifest_files import problems_of, write_lines


def test_own_format(folder):
    path = write_lines(
        folder / "train.jsonl",
        {"id": "1", "audio": "a.wav", "text": "hello Anna", "language": "en", "speaker": "s", "keywords": ["anna"]},
        "",
        {"id": "2", "audio": str(folder / "b.wav"), "text": " x ", "start": 0.25, "duration": 0.5},
    )
    manifest = load_manifest(path)
    assert manifest.format == "jsonl"
    assert manifest.skipped == ()
    assert manifest.utterances == (
        Utterance(id="1", audio=str(folder / "a.wav"), text="hello Anna", language="en", speaker="s", duration=1.0,
                  keywords=("anna",)),
        Utterance(id="2", audio=str(folder / "b.wav"), text="x", start=0.25, duration=0.5),
    )  # fmt: skip


def test_every_bad_line_is_reported_at_once(folder):
    (folder / "broken.wav").write_bytes(b"nonsense")
    path = folder / "bad.jsonl"
    lines = [
        {"id": "1", "audio": "a.wav", "text": "good"},
        '{"id": "2", "audio": ',
        ["a list"],
        {"id": "4", "audio": "a.wav", "text": "x", "keyword": []},
        {"id": "5", "text": 7},
        {"id": "6", "audio": "a.wav", "text": "  "},
        {"id": "1", "audio": "b.wav", "text": "again"},
        {"id": "8", "audio": "gone.wav", "text": "x"},
        {"id": "9", "audio": "broken.wav", "text": "x"},
        {"id": "10", "audio": "a.wav", "text": "x", "start": 0.5, "duration": 2},
        {"id": "11", "audio": "a.wav", "text": "x", "language": "English"},
        {"id": "12", "audio": "a.wav", "text": "hello", "keywords": ["bye"]},
        {"id": "13", "audio": "a.wav", "text": "x", "duration": 0.01},
        {"id": "14", "audio": "a.wav", "text": "x", "start": -1, "duration": 0, "keywords": "x", "speaker": ""},
        '{"id": "15", "audio": "a.wav", "text": "x", "start": NaN, "duration": true}',
    ]
    write_lines(path, *lines)
    path.write_bytes(path.read_bytes() + b'{"id": "16", "audio": "a.wav", "text": "\xff"}\n')
    assert problems_of(path) == [
        "2: invalid JSON: Expecting value at column 21",
        "3: is not a JSON object {…}",
        "4: keyword: unknown key; did you mean 'keywords'?",
        "5: audio: missing",
        "5: text: must be a string, is a number",
        "6: text: is empty",
        "7: id: duplicate '1', first on line 1",
        f"8: audio: {folder}/gone.wav: no such file",
        f"9: audio: {folder}/broken.wav: cannot be decoded: Format not recognised "
        "(readable: wav, flac, ogg, opus, mp3, aiff, …)",
        "10: duration: segment 0.5 s … 2.5 s lies outside the file, which lasts 1.00 s",
        "11: language: 'English' is not an ISO 639-1 code such as 'en' or 'zh'; did you mean 'en'?",
        "12: keywords: 'bye' does not occur in the transcript",
        "13: duration: 0.01 s is shorter than min_seconds = 0.1",
        "14: speaker: is empty",
        "14: start: must not be negative, is -1",
        "14: duration: must be more than 0 seconds, is 0",
        "14: keywords: must be a list of strings, is a string",
        "15: start: must be a finite number of seconds, is nan",
        "15: duration: must be a number of seconds, is true/false",
        "16: is not UTF-8 (byte 0xff at position 41)",
    ]
    skipping = load_manifest(path, on_bad="skip")
    assert [utterance.text for utterance in skipping.utterances] == ["good"]
    assert len({problem.line for problem in skipping.skipped}) == 15


def test_what_json_allows_and_nobody_can_mean(folder):
    path = write_lines(
        folder / "bad.jsonl",
        {"id": "1", "audio": "a.wav", "text": "good \U0001f600"},  # a whole pair, as two escapes
        '{"id": "2", "audio": "a.wav", "text": "hi \\ud83d"}',
        '{"id": "3\\uDE00", "audio": "a.wav", "text": "hi"}',
        '{"id": "4", "audio": "a\\ud800.wav", "text": "hi"}',
        '{"id": "5", "audio": "a.wav", "text": "hi", "attributes": {"mood\\udc00": "x"}}',
        '{"id": "6", "audio": "a.wav", "text": "hi", "\\udc00": "x"}',
        '{"id": "7", "id": "8", "audio": "a.wav", "text": "hello"}',
        '{"id": "8", "audio": "a.wav", "text": "hi", "attributes": {"mood": "x", "mood": "y"}}',
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"id": "9", "audio": "a.wav", "text": "x", "start": ' + "9" * 5000 + "}",
        '{"id": "10", "audio": "a.wav", "text": "x", "duration": ' + "9" * 400 + "}",
        {"id": "11", "audio": "a.wav", "text": "x", "channel": "left"},
        {"id": "12", "audio": "a.wav", "text": "x", "channel": 1},
    )
    half = "holds half of a UTF-16 pair (U+{}): it cannot be written as UTF-8"
    assert problems_of(path) == [
        f"2: text: {half.format('D83D')}",
        f"3: id: {half.format('DE00')}",
        f"4: audio: {half.format('D800')}",
        f"5: attributes: {half.format('DC00')}",
        f"6: \\udc00: {half.format('DC00')}",
        "7: id: occurs twice in one object",
        "8: mood: occurs twice in one object",
        "9: is nested too deeply",
        "10: invalid JSON: holds a number of thousands of digits",
        f"11: duration: must be a finite number of seconds, is {'9' * 400}",
        "12: channel: must be the number of a channel, is a string",
        f"13: channel: {folder}/a.wav: has no channel 1: it has 1, the first is 0",
    ]
    (good,) = load_manifest(path, on_bad="skip").utterances
    assert good.text == "good \U0001f600"


def test_a_file_of_which_no_line_can_be_read_says_why(folder):
    path = write_lines(folder / "bad.jsonl", '{"id": "1", "id": "2"}', '{"id": "\\ud83d"}')
    with pytest.raises(InputError) as caught:
        load_manifest(path)
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [(1, "id"), (2, "id")]


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = write_lines(folder / "m.jsonl", {"id": "1", "audio": "a.wav", "text": "x"})
    with pytest.raises(InputError, match="the name is not UTF-8") as caught:
        load_manifest(path, check_audio="none")
    str(caught.value).encode()


def test_the_summary_counts_problems(folder):
    path = write_lines(folder / "bad.jsonl", {"id": "1", "audio": "a.wav", "text": ""}, {"id": "2", "text": ""})
    with pytest.raises(InputError, match=re.escape(f"{path}: 3 problems in 2 lines")):
        load_manifest(path)


def test_nothing_usable_is_an_error_even_when_skipping(folder):
    path = write_lines(folder / "bad.jsonl", {"id": "1", "audio": "a.wav", "text": ""})
    with pytest.raises(InputError, match="no usable utterance"):
        load_manifest(path, on_bad="skip")


def test_audio_is_left_alone_on_request(folder):
    path = write_lines(folder / "m.jsonl", {"id": "1", "audio": "gone.wav", "text": "x"})
    assert load_manifest(path, check_audio="none").utterances[0].duration is None


def test_text_can_be_optional(folder):
    path = write_lines(folder / "m.jsonl", {"id": "1", "audio": "a.wav"}, {"id": "2", "audio": "b.wav", "text": ""})
    loaded = load_manifest(path, require_text=False, format="jsonl")
    assert [utterance.text for utterance in loaded.utterances] == ["", ""]


def test_limits_apply_to_lengths_from_headers(folder):
    path = write_lines(folder / "m.jsonl", {"id": "1", "audio": "a.wav", "text": "x"})
    assert problems_of(path, limits=AudioLimits(max_seconds=0.5)) == [
        "1: duration: 1.00 s is longer than max_seconds = 0.5"
    ]


# What a record holds: the reader has taken instructions and language prefixes off.
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and INSTRUCTION_END not in text and "<asr_text>" not in text
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(st.tuples(texts, texts, st.sampled_from([None, "en", "yue"]), st.floats(0, 1e3),
                               st.sampled_from([None, 0, 1])), min_size=1, unique_by=lambda row: row[0]))  # fmt: skip
def test_what_is_written_is_read_back(tmp_path, rows):
    utterances = tuple(
        Utterance(id=name, audio=str(tmp_path / "x.wav"), text=text.strip(), language=language, start=start,
                  channel=channel, instruction="softly" if channel else "", keywords=("é",) if "é" in text else ())
        for name, text, language, start, channel in rows
    )  # fmt: skip
    path = tmp_path / "out" / "m.jsonl"
    write_manifest(path, utterances)
    assert load_manifest(path, check_audio="none").utterances == utterances
    assert [entry.name for entry in path.parent.iterdir()] == ["m.jsonl"]


def test_written_paths_move_with_the_folder(folder):
    inside = Utterance(id="1", audio=str(folder / "a.wav"), text="x", duration=1.0)
    outside = Utterance(id="2", audio="/elsewhere/b.wav", text="y")
    write_manifest(folder / "m.jsonl", [inside, outside])
    assert [json.loads(line)["audio"] for line in (folder / "m.jsonl").read_text().splitlines()] == [
        "a.wav",
        "/elsewhere/b.wav",
    ]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        write_manifest(tmp_path / "file" / "m.jsonl", [])


def test_a_failed_write_leaves_the_old_file(folder):
    write_manifest(folder / "m.jsonl", [Utterance(id="1", audio="/a.wav", text="x")])

    def failing():
        yield Utterance(id="2", audio="/a.wav", text="y")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        write_manifest(folder / "m.jsonl", failing())
    assert '"1"' in (folder / "m.jsonl").read_text()
    assert not list(folder.glob("*.tmp"))


def test_hypotheses(tmp_path):
    path = write_lines(tmp_path / "h.jsonl", {"id": "1", "hypothesis": "", "reference": "x"})
    assert load_hypotheses(path) == {"1": ""}
    write_lines(
        path,
        {"id": "1", "hypothesis": "a"},
        {"id": "1", "hypothesis": "b"},
        {"id": "2", "hypothesis": 3},
        '{"id": "3", "hypothesis": "\\ud83d"}',
        '{"id": "4", "hypothesis": "a", "hypothesis": "b"}',
    )
    with pytest.raises(InputError, match="duplicate '1', first on line 1") as caught:
        load_hypotheses(path)
    assert [problem.line for problem in caught.value.problems] == [2, 3, 4, 5]


def test_shared_audio_is_opened_once(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "speech.manifests.recordings.audio_seconds", lambda path: opened.append(path) or audio_seconds(path)
    )
    lines = [{"id": str(i), "audio": "a.wav", "text": "x", "start": i / 10, "duration": 0.1} for i in range(9)]
    assert len(load_manifest(write_lines(folder / "m.jsonl", *lines)).utterances) == 9
    assert len(opened) == 1


@given(path=st.text("a./ ", min_size=1), folder=st.sampled_from(["/", "/data", "data/x", "."]))
def test_paths_are_those_of_pathlib(path: str, folder: str) -> None:
    assert _absolute(Path(folder), path) == str((Path(folder) / path).absolute())


def test_a_relative_manifest_follows_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert _absolute(Path("data"), "x/y.wav") == f"{tmp_path}/{name}/data/x/y.wav"
