"""Foreign manifest formats, and telling all of them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech.errors import InputError, UserError
from speech.manifests import load_manifest
from tests.speech.manifests.manifest_files import problems_of, write_lines


def kaldi(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def test_kaldi_directory(folder):
    kaldi(folder, wav_scp=f"u1 {folder}/a.wav\nu2\tb.wav\n", text="u1 hello  world\nu2 bye\n", utt2spk="u1 s1\nu2 s2\n")
    manifest = load_manifest(folder)
    assert manifest.format == "kaldi"
    assert [(u.id, u.audio, u.text, u.speaker) for u in manifest.utterances] == [
        ("u1", str(folder / "a.wav"), "hello  world", "s1"),
        ("u2", str(folder / "b.wav"), "bye", "s2"),
    ]


def test_kaldi_segments(folder):
    kaldi(folder, wav_scp="rec a.wav\n", text="u1 one\nu2 two\n", segments="u1 rec 0.0 0.4\nu2 rec 0.4 -1\n")
    first, second = load_manifest(folder).utterances
    assert (first.start, first.duration) == (0.0, 0.4)
    assert (second.start, second.duration) == (0.4, pytest.approx(0.6))


def test_kaldi_problems(folder):
    kaldi(folder, wav_scp="u1 sox a.mp3 -t wav - |\nu2 raw.ark:17\nu3 a.wav\nu4 b.wav\nu4 b.wav\nu5\n",
          text="u3\nu9 nobody\nu4 fine\n")  # fmt: skip
    found = problems_of(folder)
    assert [problem.split(";")[0] for problem in found] == [
        "2: u9: utterance is not in wav.scp",
        "1: u1: is a pipe",
        "2: u2: points into a Kaldi archive",
        "3: text: is empty",
        "5: u4: duplicate, first on line 4",
        "6: u5: nothing follows the name",
    ]
    assert "commands in data files are not executed" in found[1]
    manifest = load_manifest(folder, on_bad="skip")
    assert [utterance.id for utterance in manifest.utterances] == ["u4"]


def test_funasr(folder):
    path = write_lines(
        folder / "m.jsonl",
        {"key": "k1", "source": "a.wav", "target": "你好", "text_language": "<|zh|>", "source_len": 100},
        {"source": "b.wav", "target": "hello"},
    )
    manifest = load_manifest(path)
    assert manifest.format == "funasr"
    assert [(u.id, u.text, u.language) for u in manifest.utterances] == [("k1", "你好", "zh"), ("b.wav", "hello", None)]
    path = write_lines(folder / "m.jsonl", {"key": "k", "source": "a.wav"}, {"source": "gone.wav", "target": "x"})
    assert problems_of(path) == ["1: target: missing", f"2: source: {folder}/gone.wav: no such file"]


def chat(reply: str, user: object = "<audio>Transcribe.", **keys: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": reply}], **keys}


def test_chat(folder):
    parts = [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "what is said?"}]
    path = write_lines(
        folder / "m.jsonl",
        chat("language English<asr_text>hello", audios=["a.wav"], id="1"),
        chat("language None<asr_text>mm", audios="b.wav"),
        chat("plain", audios=["b.wav"]),
        chat("parts", user=parts),
    )
    manifest = load_manifest(path)
    assert manifest.format == "chat"
    assert [(u.id, Path(u.audio).name, u.text, u.language) for u in manifest.utterances] == [
        ("1", "a.wav", "hello", "en"),
        ("b.wav", "b.wav", "mm", None),
        ("b.wav#2", "b.wav", "plain", None),
        ("a.wav", "a.wav", "parts", None),
    ]


def test_chat_problems(folder):
    path = write_lines(
        folder / "m.jsonl",
        chat("x", audios=["a.wav", "b.wav"]),
        chat("x", user="no sound", audios=["a.wav"]),
        {"messages": [{"role": "user", "content": "<audio>"}], "audios": ["a.wav"]},
        {"messages": "hello", "audios": ["a.wav"]},
        {"messages": [{"role": "user"}], "audios": ["a.wav"]},
        chat("x"),
        chat("language Klingon<asr_text>x", audios=["a.wav"]),
    )
    assert problems_of(path) == [
        "1: audios: must be a list with the path of exactly one audio file",
        "2: messages: the user messages hold 0 <audio> placeholders, expected 1",
        "3: messages: the last message must be the assistant's (the transcript)",
        "4: messages: must be a non-empty list of messages",
        "5: messages: the 'content' of a message must be a string or a list of typed parts",
        "6: audios: missing",
        "7: messages: 'Klingon' is not an ISO 639-1 code such as 'en' or 'zh'",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("[\n{}\n]", "looks like one JSON array"),
        ("id,audio,text\n1,a.wav,x\n", "looks like comma-separated text"),
        ("1\ta.wav\tx\n", "looks like tab-separated text"),
        ("{\n", "spread over several lines"),
        ('{"audio_filepath": "a.wav", "text": "x"}', "looks like a NeMo manifest"),
        ('{"x": 1, "y": 2}', "has the keys x, y"),
    ],
)
def test_other_files_are_refused_with_what_was_expected(tmp_path, content, says):
    path = tmp_path / "m"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_manifest(path)
    assert says in str(caught.value)
    assert "FunASR jsonl: source, target" in str(caught.value)


def test_missing_and_misnamed(folder):
    with pytest.raises(InputError, match="no such file"):
        load_manifest(folder / "gone.jsonl")
    with pytest.raises(InputError, match=r"is a directory without wav.scp and text"):
        load_manifest(folder)
    path = write_lines(folder / "m.jsonl", {"id": "1", "audio": "a.wav", "text": "x"})
    with pytest.raises(UserError, match="did you mean 'kaldi'"):
        load_manifest(path, format="kalid")
    with pytest.raises(UserError, match="this looks like jsonl"):
        load_manifest(path, format="kaldi")
