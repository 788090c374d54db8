"""Reader for Kaldi data directories."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speech.errors import Problem
from speech.manifests.channels import channel_counts
from speech.manifests.entries import Entry
from speech.manifests.jsonl import read_lines

_NAMES = {"audio": "wav.scp", "text": "text", "speaker": "utt2spk", "start": "segments", "duration": "segments",
          "channel": "segments"}  # fmt: skip
FILES = ("wav.scp", "text", "utt2spk", "segments")
"""The files of a directory that are read; the first two must be there."""

_ARCHIVE = re.compile(r"\.ark:\d+$")


def read_kaldi(folder: Path) -> Iterator[Entry | Problem]:
    """A directory with `wav.scp` and `text`, optionally `utt2spk` and `segments`.

    Relative paths in `wav.scp` are relative to the directory. A pipe is refused: nothing in a data file is ever
    executed. Problems of an utterance are reported at its line in `wav.scp` (or `segments`, where there is one).

    A fifth column of `segments` is the channel, counted from 0. A recording with several channels and several speakers
    needs it. The recordings that may be such are opened.
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
    openable = {name: (folder / target).absolute() for name, (_, target) in audio.items() if name not in refused}
    channels = _channels_of_calls(openable, segments, speakers)
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
        if values.get("channel") is None and channels.get(recording, 1) > 1:
            message = (
                f"recording {recording!r} has {channels[recording]} channels and utterances of several speakers, whom "
                "averaging would mix; add a fifth column with the channel, 0 for the first"
            )
            yield Problem(file=str(index), line=line, key=name, message=message)
            continue
        values["audio"] = audio[recording][1]
        if name in texts:
            values["text"] = texts[name][1]
        if name in speakers:
            values["speaker"] = speakers[name][1]
        yield Entry(str(index), line, folder, values, _NAMES)
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


def _channels_of_calls(
    audio: Mapping[str, Path], segments: Mapping[str, tuple[int, str]], speakers: Mapping[str, tuple[int, str]]
) -> dict[str, int]:
    """Number of channels by recording, where several speakers stand in one, who may have a channel each.

    An utterance without a speaker counts as one of another speaker.
    """
    voices: dict[str, set[str]] = {}
    for name, (_, rest) in segments.items():
        voices.setdefault(rest.split()[0], set()).add(speakers[name][1] if name in speakers else name)
    files = {name: str(audio[name]) for name, found in voices.items() if len(found) > 1 and name in audio}
    counts = channel_counts(files.values())
    return {name: counts[file] for name, file in files.items() if file in counts}


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
