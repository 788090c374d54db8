"""What the rows of other tools have in common: ids that must be made, languages written in other ways, many names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from speech.manifests.entries import code_of

SYNONYMS = {
    "id": ("id", "utt_id", "key"),
    "text": ("text", "sentence", "transcription", "transcript"),
    "language": ("language", "lang", "locale"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "start": ("start",),
    "duration": ("duration",),
    "keywords": ("keywords",),
}
"""How columns of data sets, and keys beside a recording in a tar, call a key of ours; the first one counts."""


class Ids:
    """Ids for formats that have none, or none that must be unique: a name, numbered when it comes again."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, name: Any, line: int) -> str:
        """Of the utterance that a line names, as by its audio path as written."""
        if not isinstance(name, str):
            return f"line-{line}"
        count = self._seen[name] = self._seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def plain_language(value: Any) -> Any:
    """The code of a language written in some other way; what is unknown stays, so that validation names it."""
    return (_code(value) or value) if isinstance(value, str) else value


_code = lru_cache(maxsize=1024)(code_of)


def names_in(columns: Iterable[str]) -> dict[str, str]:
    """Which of these columns holds which key of ours."""
    there = set(columns)
    found = {key: next((name for name in names if name in there), None) for key, names in SYNONYMS.items()}
    return {key: name for key, name in found.items() if name is not None}


def values_of(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Our keys of a row, those without a value left out."""
    values = {key: row[name] for key, name in names.items() if row.get(name) is not None}
    for key in ("id", "speaker"):
        # Numbers are names, too.
        if isinstance(values.get(key), int) and not isinstance(values[key], bool):
            values[key] = str(values[key])
    if "language" in values:
        values["language"] = plain_language(values["language"])
    return values
