"""Reader for Kaldi data directories."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.jsonl import read_lines

_NAMES = {"audio": "wav.scp", "text": "text", "speaker": "utt2spk", "start": "segments", "duration": "segments",
          "channel": "segments"}  # fmt: skip
_ARCHIVE = re.compile(r"\.ark:\d+$")


def read_kaldi(folder: Path) -> Iterator[Entry | Problem]:
    """A directory with `wav.scp` and `text`, optionally `utt2spk` and `segments`.

    Relative paths in `wav.scp` are relative to the directory. A pipe is refused: nothing in a data file is ever
    executed. Problems of an utterance are reported at its line in `wav.scp` (or `segments`, where there is one).

    A fifth column of `segments` is the channel, counted from 0. Where several speakers, or utterances of unknown
    speakers, stand in one recording, it may have a channel for each, which must not be mixed: such an entry has to name
    its channel if there is more than one.
    """
    problems: list[Problem] = []
    audio = _table(folder / "wav.scp", problems)
    texts = _table(folder / "text", problems, empty_allowed=True)
    speakers = _table(folder / "utt2spk", problems) if (folder / "utt2spk").exists() else {}
    cut = (folder / "segments").exists()
    segments = _table(folder / "segments", problems) if cut else {}
    yield from problems

    refused = {}
    for name, (line, target) in audio.items():
        complaint = _refusal(target)
        if complaint is not None:
            refused[name] = complaint
            yield Problem(file=str(folder / "wav.scp"), line=line, key=name, message=complaint)

    index = folder / ("segments" if cut else "wav.scp")
    utterances = segments if cut else audio
    voices: dict[str, set[str]] = {}
    for name, (_, rest) in segments.items():
        voices.setdefault(rest.split()[0], set()).add(speakers[name][1] if name in speakers else name)
    for name, (line, rest) in utterances.items():
        values: dict[str, Any] = {"id": name}
        recording = name
        if cut:
            parsed = _segment(rest)
            if isinstance(parsed, str):
                yield Problem(file=str(index), line=line, key=name, message=parsed)
                continue
            recording, values["start"], values["duration"], values["channel"] = parsed
            if recording not in audio:
                message = f"recording {recording!r} is not in wav.scp"
                yield Problem(file=str(index), line=line, key=name, message=message)
                continue
        if recording in refused:
            continue
        values["audio"] = audio[recording][1]
        if name in texts:
            values["text"] = texts[name][1]
        if name in speakers:
            values["speaker"] = speakers[name][1]
        yield Entry(str(index), line, folder, values, _NAMES, names_channel=len(voices.get(recording, ())) > 1)
    for name, (line, _) in texts.items():
        if name not in utterances:
            message = f"utterance is not in {index.name}"
            yield Problem(file=str(folder / "text"), line=line, key=name, message=message)


def _table(path: Path, problems: list[Problem], empty_allowed: bool = False) -> dict[str, tuple[int, str]]:
    """`name rest-of-line` as name → (line, rest); defects are added to `problems`."""
    rows: dict[str, tuple[int, str]] = {}
    for item in read_lines(path):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        line, text = item
        name, rest = (*text.split(maxsplit=1), "")[:2]
        if name in rows:
            message = f"duplicate, first on line {rows[name][0]}"
            problems.append(Problem(file=str(path), line=line, key=name, message=message))
        elif not rest and not empty_allowed:
            message = "nothing follows the name"
            problems.append(Problem(file=str(path), line=line, key=name, message=message))
        else:
            rows[name] = (line, rest)
    return rows


def _refusal(target: str) -> str | None:
    if target.endswith("|") or target.startswith("|"):
        return (
            "is a pipe; commands in data files are not executed: run it yourself, write its output to wav or flac "
            "files, and list those"
        )
    if _ARCHIVE.search(target):
        return "points into a Kaldi archive; extract it to wav or flac files and list those"
    return None


def _segment(rest: str) -> tuple[str, float, float | None, int | None] | str:
    """`recording start end [channel]` → (recording, start, duration, channel); an end of −1 means the recording's."""
    fields = rest.split()
    if len(fields) not in (3, 4):
        return "expected 'recording start end', or one more with a channel"
    try:
        start, end = float(fields[1]), float(fields[2])
    except ValueError:
        return "start and end must be numbers of seconds"
    try:
        channel = int(fields[3]) if len(fields) == 4 else None
    except ValueError:
        return f"the channel must be a number, 0 for the first, is {fields[3]!r}"
    return fields[0], start, None if end == -1 else end - start, channel
