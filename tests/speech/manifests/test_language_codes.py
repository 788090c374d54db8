"""Languages as manifests name them: read as one code, or refused with the likely one."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech.manifests import load_manifest
from tests.speech.manifests.manifest_files import problems_of, write_lines


@pytest.mark.parametrize(("written", "code"), [("eng", "en"), ("cmn", "zh"), ("yue", "yue"), ("quy", "quy")])
def test_a_code_is_read_as_the_short_one(folder: Path, written: str, code: str) -> None:
    path = write_lines(folder / "m.jsonl", {"id": "1", "audio": "a.wav", "text": "x", "language": written})
    assert [utterance.language for utterance in load_manifest(path).utterances] == [code]


@pytest.mark.parametrize(("written", "meant"), [("jp", "ja"), ("zh-CN", "zh"), ("EN", "en"), ("xx", None)])
def test_what_is_no_code_is_refused(folder: Path, written: str, meant: str | None) -> None:
    path = write_lines(folder / "m.jsonl", {"id": "1", "audio": "a.wav", "text": "x", "language": written})
    hint = f"; did you mean {meant!r}?" if meant else ""
    assert problems_of(path) == [f"1: language: {written!r} is not an ISO 639-1 code such as 'en' or 'zh'{hint}"]


def test_funasr_names_are_read(folder: Path) -> None:
    line = {"key": "1", "source": "a.wav", "target": "x", "text_language": "<|jp|>"}
    path = write_lines(folder / "m.jsonl", line)
    assert [utterance.language for utterance in load_manifest(path, format="funasr").utterances] == ["ja"]
