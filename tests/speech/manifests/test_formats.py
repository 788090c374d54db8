"""Foreign manifest formats, and telling all of them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio import load_audio
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


def write_call(folder: Path) -> None:
    """A recording of a speaker in each channel, two seconds."""
    sides = [np.full(32_000, value, np.float32) for value in (0.5, -0.25)]
    soundfile.write(folder / "call.wav", np.stack(sides, axis=1), 16_000)


def test_kaldi_channels(folder):
    write_call(folder)
    kaldi(folder, wav_scp="call call.wav\n", text="u1 hello\nu2 bye\nu3 x\n", utt2spk="u1 s1\nu2 s2\nu3 s1\n",
          segments="u1 call 0 1 0\nu2 call 0 1 1\nu3 call 1 -1 0\n")  # fmt: skip
    utterances = load_manifest(folder).utterances
    assert [u.channel for u in utterances] == [0, 1, 0]
    assert [float(load_audio(u, 16_000)[0]) for u in utterances] == pytest.approx([0.5, -0.25, 0.5], abs=1e-3)


def test_kaldi_does_not_mix_the_speakers_of_a_call(folder):
    write_call(folder)
    files = {"wav_scp": "call call.wav\nmono a.wav\n", "text": "u1 hello\nu2 bye\nm1 x\nm2 y\n"}
    kaldi(folder, **files, segments="u1 call 0 1\nu2 call 0 1\nm1 mono 0 0.5\nm2 mono 0.5 1\n")
    found = problems_of(folder)
    assert found[0] == (
        "1: u1: recording 'call' has 2 channels and utterances of several speakers, whom averaging would mix; "
        "add a fifth column with the channel, 0 for the first"
    )
    assert len(found) == 2
    # One known speaker in all of it is no call: the channels are averaged, as in every other format.
    kaldi(folder, segments="u1 call 0 1\nu2 call 0 1\nm1 mono 0 0.5\nm2 mono 0.5 1\n", utt2spk="u1 s\nu2 s\n")
    assert [u.channel for u in load_manifest(folder).utterances] == [None] * 4
    kaldi(folder, segments="u1 call 0 1 2\nu2 call 0 1 B\nm1 mono 0 0.5 0 x\nm2 mono 0.5 1 -1\n")
    assert problems_of(folder) == [
        f"1: segments: {folder}/call.wav: has no channel 2: it has 2, the first is 0",
        "2: u2: the channel must be a number, 0 for the first, is 'B'",
        "3: m1: expected 'recording start end', or one more with a channel",
        "4: segments: channels are counted from 0, is -1",
    ]


def test_a_segment_that_ends_after_its_file_is_cut_as_by_kaldi(folder, caplog):
    kaldi(folder, wav_scp="r1 a.wav\n", text="u1 one\nu2 two\nu3 three\n")
    kaldi(folder, segments="u1 r1 0.5 1.04\nu2 r1 0.5 1.2\nu3 r1 0.5 1.51\n")
    assert problems_of(folder) == [
        "3: segments: segment 0.5 s … 1.51 s lies outside the file, which lasts 1.00 s",
    ]
    caplog.clear()
    one, two = load_manifest(folder, on_bad="skip").utterances
    assert (one.duration, two.duration) == (0.5, 0.5)
    assert len(load_audio(two, 16_000)) == 8_000
    assert [record.getMessage() for record in caplog.records] == [
        f"1 segment cut at the end of the file, the first: u2 ends 0.20 s after {folder}/a.wav"
    ]


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


def test_fun_asr_writes_the_path_into_the_message(folder):
    path = write_lines(
        folder / "m.jsonl",
        chat("几点了?", user="语音转写：<|startofspeech|>!a.wav<|endofspeech|>", speech_length=145, text_length=3),
        chat("x", user="<|startofspeech|>!b.wav<|endofspeech|>", key="k2"),
        chat("y", user="<|startofspeech|>!https://x.org/c.wav<|endofspeech|>"),
        chat("z", user="<|startofspeech|>!a.wav<|endofspeech|><|startofspeech|>!b.wav<|endofspeech|>"),
    )
    manifest = load_manifest(path, on_bad="skip")
    assert [(u.id, u.audio, u.text) for u in manifest.utterances] == [
        ("a.wav", str(folder / "a.wav"), "几点了?"),
        ("k2", str(folder / "b.wav"), "x"),
    ]
    assert [(problem.line, problem.key, problem.message) for problem in manifest.skipped] == [
        (3, "audios", "is an address on the network; recordings must be files: 'https://x.org/c.wav'"),
        (4, "audios", "must be a list with the path of exactly one audio file"),
    ]


@pytest.mark.parametrize("line", [
    {"id": "1", "audio": "a.wav", "text": "language English<asr_text>hello", "language": "en"},
    {"id": "1", "audio": "a.wav", "text": "language English<asr_text>hello"},
    {"key": "1", "source": "a.wav", "target": "language English<asr_text>hello"},
])  # fmt: skip
def test_the_language_prefix_of_qwen3_asr_is_read_in_every_format(folder, line):
    (utterance,) = load_manifest(write_lines(folder / "m.jsonl", line)).utterances
    assert (utterance.text, utterance.language) == ("hello", "en")


def test_a_language_prefix_that_cannot_be_right_is_named(folder):
    path = write_lines(
        folder / "m.jsonl",
        {"id": "1", "audio": "a.wav", "text": "language English<asr_text>hallo", "language": "de"},
        {"id": "2", "audio": "a.wav", "text": "language Klingon<asr_text>x"},
        {"id": "3", "audio": "a.wav", "text": "language None<asr_text>"},
    )
    assert problems_of(path) == [
        "1: text: begins with the language 'en', but the line says 'de'",
        "2: text: 'Klingon' is not an ISO 639-1 code such as 'en' or 'zh'",
        "3: text: is empty",
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
        "6: audios: missing; expected `audios`, a part of type audio, or <|startofspeech|>!path<|endofspeech|>",
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
        ('{"key": "1", "wav": "a.wav", "txt": "x"}', "looks like a WeNet data list"),
        ('{"id": "1", "sources": [], "sampling_rate": 1}', "looks like recordings of Lhotse"),
        ('{"id": "1", "recording_id": "r", "text": "x"}', "looks like supervisions of Lhotse"),
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
