"""Reader for FunASR's jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids, plain_language
from speech.manifests.jsonl import entries


def read_funasr(path: Path) -> Iterator[Entry | Problem]:
    """FunASR's jsonl: `source` (audio path), `target` (transcript), optional `key` and `text_language` (`<|zh|>`).

    Its other keys (lengths, emotion and event labels) carry nothing that training needs and are left alone.
    """
    names = {"id": "key", "audio": "source", "text": "target", "language": "text_language"}
    ids = Ids()

    def understand(number: int, values: dict[str, Any]) -> Iterator[Entry | Problem]:
        fields = {key: values[name] for key, name in names.items() if name in values}
        fields.setdefault("id", ids.of(fields.get("audio"), number))
        fields["language"] = plain_language(fields.get("language"))
        yield Entry(str(path), number, path.parent, fields, names)

    return entries(path, understand)
