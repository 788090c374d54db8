"""Reader for the tar shards of WebDataset (https://github.com/webdataset/webdataset)."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech.containers import Span
from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids, names_in, values_of
from speech.manifests.jsonl import BadObjectError, decode_object
from speech.manifests.shards import shards

SUFFIX = ".tar"
AUDIO = ("flac", "wav", "mp3", "ogg", "opus", "m4a", "aac", "wma", "aiff", "sph")
"""What is taken for sound. Whether libsndfile reads it is found out when it is opened."""

_MAX_TEXT_BYTES = 2**20


@dataclass
class _Sample:
    """Members that share a key.

    Attributes:
        number: place in its tar, counted from 1.
        members: by suffix.
        problems: (suffix, what is wrong with it).
    """

    key: str
    number: int
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_webdataset(path: Path) -> Iterator[Entry | Problem]:
    """A tar, the tars of a folder in the order of their names, or those of a pattern with braces.

    Members that share their name up to the first dot are one utterance: a recording (`AUDIO`), and `.json` with the
    keys of `SYNONYMS` or `.txt` with the transcript, which counts first. Members with other suffixes are left alone.
    The id is the name, unless the JSON has one; it is numbered when it comes again. The line of a problem is the place
    of the sample in its tar, counted from 1.
    """
    ids = Ids()
    for file in shards(path, SUFFIX):
        number = 0
        try:
            with tarfile.open(file, "r:") as tar, file.open("rb") as data:
                for sample in _samples(tar):
                    number = sample.number
                    yield from _understood(file, data.fileno(), sample, ids)
        except (tarfile.TarError, EOFError) as error:
            yield Problem(str(file), number + 1, None, f"is no tar from here on, or breaks off: {error}")
        except OSError as error:
            yield Problem(str(file), None, None, error.strerror or str(error))


def _samples(tar: tarfile.TarFile) -> Iterator[_Sample]:
    sample: _Sample | None = None
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
        if not member.isreg() or member.issparse():
            continue
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        key = folder + slash + stem
        if not stem:
            continue
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key, 1 if sample is None else sample.number + 1)
        suffix = suffix.lower()
        if suffix in sample.members:
            sample.problems.append((suffix, "occurs twice"))
        sample.members[suffix] = member
    if sample is not None:
        yield sample


def _understood(file: Path, data: int, sample: _Sample, ids: Ids) -> Iterator[Entry | Problem]:
    def problem(suffix: str | None, message: str) -> Problem:
        return Problem(str(file), sample.number, f"{sample.key}.{suffix}" if suffix else sample.key, message)

    problems = [problem(suffix, message) for suffix, message in sample.problems]
    sound = [suffix for suffix in sample.members if suffix in AUDIO]
    if len(sound) != 1:
        found = f"the recordings {', '.join(sound)}" if sound else f"no recording, but {', '.join(sample.members)}"
        problems.append(problem(None, f"has {found}; expected one"))
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for suffix in ("json", "txt"):
        if suffix not in sample.members:
            continue
        member = sample.members[suffix]
        if member.size > _MAX_TEXT_BYTES:
            problems.append(problem(suffix, f"has {member.size} bytes, too many for a description"))
            continue
        try:
            text = os.pread(data, member.size, member.offset_data).decode("utf-8-sig")
            if suffix == "txt":
                values["text"], names["text"] = text, f"{sample.key}.txt"
            else:
                said = decode_object(text)
                found_in = names_in(said)
                values = values_of(said, found_in)
                names = {key: f"{sample.key}.json: {name}" for key, name in found_in.items()}
        except UnicodeDecodeError as error:
            problems.append(problem(suffix, f"is not UTF-8 (position {error.start + 1})"))
        except BadObjectError as error:
            problems.append(problem(suffix, error.message if error.key is None else f"{error.key}: {error.message}"))
    if problems:
        yield from problems
        return
    member = sample.members[sound[0]]
    values["audio"] = str(Span(file.name, member.offset_data, member.size, member.name))
    name = values.get("id")
    values["id"] = ids.of(name if isinstance(name, str) else sample.key, sample.number)
    names |= {"audio": f"{sample.key}.{sound[0]}"}
    names = {"text": f"{sample.key}.txt", **names}
    yield Entry(str(file), sample.number, file.parent, values, names)
