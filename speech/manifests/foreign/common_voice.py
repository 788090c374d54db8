"""Reader for the tables of Common Voice."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids, plain_language
from speech.manifests.jsonl import read_lines

REQUIRED = {"path", "sentence"}
_NAMES = {"id": "path", "audio": "path", "text": "sentence", "speaker": "client_id", "language": "locale"}


def read_common_voice(path: Path) -> Iterator[Entry | Problem]:
    """Tab-separated text whose first line names the columns: `path`, `sentence`, optional `client_id`, `locale`.

    Recordings are in `clips/` beside the table or, without such a folder, relative to the table. The id is the path.
    """
    clips = path.parent / "clips"
    folder = clips if clips.is_dir() else path.parent
    file, ids = str(path), Ids()
    columns: list[str] = []
    for item in read_lines(path, strip=False):
        if isinstance(item, Problem):
            yield item
            continue
        line, text = item
        if not columns:
            columns = header_of(text)
            missing = sorted(REQUIRED - set(columns))
            if missing:
                yield Problem(file=file, line=line, key=None, message=f"names no column {' or '.join(missing)}")
                return
            continue
        fields = _fields(text, len(columns))
        if len(fields) != len(columns):
            message = f"has {len(fields)} fields, the first line names {len(columns)}"
            yield Problem(file=file, line=line, key=None, message=message)
            continue
        row = dict(zip(columns, fields, strict=True))
        values = {key: row[name] for key, name in _NAMES.items() if row.get(name)}
        values["id"] = ids.of(values.get("audio"), line)
        if "language" in values:
            values["language"] = plain_language(values["language"])
        yield Entry(file, line, folder, values, _NAMES)


def header_of(line: str) -> list[str]:
    """The names of the columns that a first line holds."""
    return [name.strip() for name in _fields(line, 0)]


def _fields(line: str, wanted: int) -> list[str]:
    """The fields of a line. Releases differ in whether a quote is one, or marks a field: the number of fields tells."""
    plain = line.split("\t")
    if '"' not in line:
        return plain
    quoted = list(chain.from_iterable(csv.reader([line], delimiter="\t")))
    return quoted if len(quoted) == wanted or len(plain) != wanted else plain
