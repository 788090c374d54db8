"""Manifests of texts to be spoken."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech.errors import InputError
from speech.manifests import load_manifest, write_manifest
from speech.records import Utterance
from tests.speech.manifests.manifest_files import problems_of, write_lines


def meta(folder: Path, *lines: str) -> Path:
    path = folder / "meta.lst"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_meta_lst(folder):
    path = meta(folder, "u1|good day|a.wav|turn on the light", "u2|你好|b.wav|打开灯|c.flac", "")
    manifest = load_manifest(path)
    assert manifest.format == "seed_tts"
    assert manifest.utterances == (
        Utterance(id="u1", audio="", text="turn on the light", prompt_audio=f"{folder}/a.wav", prompt_text="good day"),
        Utterance(
            id="u2", audio=f"{folder}/c.flac", text="打开灯", prompt_audio=f"{folder}/b.wav", prompt_text="你好",
            duration=1.0,
        ),
    )  # fmt: skip


def test_problems_of_a_meta_lst_name_its_own_columns(folder):
    path = meta(
        folder,
        "u1|good day|gone.wav|text",
        "u2|good day|a.wav|",
        "u3|a.wav|text",
        "u4||a.wav|text|nowhere.wav",
        "u1|good day|a.wav|text",
        "u5|good day||text",
    )
    assert problems_of(path) == [
        f"1: prompt_wav: {folder}/gone.wav: no such file",
        "2: text: is empty",
        "3: has 3 fields; expected utt|prompt_text|prompt_wav|text, or one more with a wav",
        f"4: wav: {folder}/nowhere.wav: no such file",
        "5: utt: duplicate 'u1', first on line 1",
        "6: prompt_wav: is empty",
    ]
    assert load_manifest(meta(folder, "u|p|a.wav|t", "x"), on_bad="skip").utterances[0].id == "u"


def test_an_instruction_is_no_text_to_be_said(folder):
    lines = ["u1|good day|a.wav|speak softly<|endofprompt|>turn on the light", "u2||b.wav|<|endofprompt|>bye"]
    utterances = load_manifest(meta(folder, *lines)).utterances
    assert [(u.instruction, u.text) for u in utterances] == [("speak softly", "turn on the light"), ("", "bye")]
    assert utterances[0].instructed_text == "speak softly<|endofprompt|>turn on the light"
    write_manifest(folder / "out.jsonl", utterances)
    assert load_manifest(folder / "out.jsonl").utterances == utterances
    bad = ["u1||a.wav|softly<|endofprompt|>now<|endofprompt|>hi", "u2||a.wav|softly<|endofprompt|>"]
    assert problems_of(meta(folder, *bad)) == [
        "1: text: holds <|endofprompt|> more than once",
        "2: text: is empty",
    ]


def test_our_own_jsonl_with_voices(folder):
    path = write_lines(
        folder / "m.jsonl",
        {"id": "1", "text": "hello", "prompt_audio": "a.wav"},
        {"id": "2", "text": "bye", "audio": "b.wav", "prompt_audio": "a.wav", "prompt_text": " good day "},
    )
    first, second = load_manifest(path).utterances
    assert (first.audio, first.prompt_audio, first.prompt_text, first.duration) == ("", f"{folder}/a.wav", "", None)
    assert (second.audio, second.prompt_text, second.duration) == (f"{folder}/b.wav", "good day", 1.0)


def test_problems_of_voices(folder, write_tone):
    write_tone(folder / "long.wav", seconds=61.0)
    path = write_lines(
        folder / "m.jsonl",
        {"id": "1", "text": "x", "prompt_audio": "long.wav"},
        {"id": "2", "text": "x", "prompt_audio": "a.wav", "start": 0.5},
        {"id": "3", "text": "x"},
        {"id": "4", "text": "x", "prompt_audio": 3, "prompt_text": 4},
        {"id": "5", "text": "", "prompt_audio": "a.wav"},
        {"id": "6", "text": "x", "prompt_adio": "a.wav", "audio": "a.wav"},
    )
    assert problems_of(path) == [
        f"1: prompt_audio: {folder}/long.wav: 61.00 s is longer than max_seconds = 60",
        "2: start: is given, but there is no audio",
        "3: audio: missing",
        "4: prompt_audio: must be a string, is a number",
        "4: prompt_text: must be a string, is a number",
        "5: text: is empty",
        "6: prompt_adio: unknown key; did you mean 'prompt_audio'?",
    ]


def test_what_is_written_is_read_again(folder):
    utterances = load_manifest(meta(folder, "u1|good day|a.wav|hi", "u2||b.wav|bye|c.flac")).utterances
    write_manifest(folder / "out.jsonl", utterances)
    assert load_manifest(folder / "out.jsonl").utterances == utterances
    text = (folder / "out.jsonl").read_text(encoding="utf-8")
    assert '"prompt_audio": "a.wav"' in text
    assert '"audio": ""' not in text


def test_attributes(folder):
    path = write_lines(
        folder / "m.jsonl",
        {"id": "1", "text": "x", "audio": "a.wav", "attributes": {"gender": "f", "rate": "fast"}},
        {"id": "2", "text": "x", "audio": "a.wav"},
    )
    manifest = load_manifest(path)
    assert [u.attributes for u in manifest.utterances] == [{"gender": "f", "rate": "fast"}, {}]
    assert manifest.places == ((str(path), 1), (str(path), 2))
    write_manifest(folder / "out.jsonl", manifest.utterances)
    assert load_manifest(folder / "out.jsonl").utterances == manifest.utterances
    assert "attributes" not in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()[1]


def test_problems_of_attributes(folder):
    bad = ({"gender": 1}, ["f"], {"gender": " "}, {"speaker": "a"}, {"": "f"})
    path = write_lines(
        folder / "m.jsonl",
        *({"id": str(i), "text": "x", "audio": "a.wav", "attributes": value} for i, value in enumerate(bad)),
    )
    assert problems_of(path) == [
        "1: attributes: the class of 'gender' must be a non-empty string, is 1",
        "2: attributes: must be an object of names and classes, is a list",
        "3: attributes: the class of 'gender' must be a non-empty string, is \" \"",
        "4: attributes: 'speaker' is a key of the line itself",
        "5: attributes: has an attribute without a name",
    ]


def test_other_lists_are_still_refused(tmp_path):
    with pytest.raises(InputError, match="looks like plain text"):
        load_manifest(meta(tmp_path, "u1|only two"))
