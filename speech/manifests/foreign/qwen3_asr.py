"""Reader for the jsonl with which Qwen3-ASR is fine-tuned (`finetuning/` of its repository)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids
from speech.manifests.jsonl import entries


def read_qwen3_asr(path: Path) -> Iterator[Entry | Problem]:
    """`audio` and `text`, before which stands `language English<asr_text>` (`split_language_prefix`).

    There are no ids: the id is the path as written, numbered when it comes again. A `prompt` is left alone: the context
    that it holds is given by `keywords` here.
    """
    file, folder, ids = str(path), path.parent, Ids()

    def understand(number: int, values: dict[str, Any]) -> Iterator[Entry | Problem]:
        fields: dict[str, Any] = {key: values[key] for key in ("audio", "text") if key in values}
        fields["id"] = ids.of(fields.get("audio"), number)
        yield Entry(file, number, folder, fields)

    return entries(path, understand)
