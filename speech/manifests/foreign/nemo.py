"""Reader for the manifests of NVIDIA NeMo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids, plain_language
from speech.manifests.jsonl import entries

_NAMES = {"id": "audio_filepath", "audio": "audio_filepath", "text": "text", "start": "offset", "duration": "duration",
          "language": "lang", "speaker": "speaker"}  # fmt: skip
_READ = {key: name for key, name in _NAMES.items() if key != "id"}


def read_nemo(path: Path) -> Iterator[Entry | Problem]:
    """`audio_filepath` (relative to the manifest), `text`, optional `duration`, `offset`, `lang` and `speaker`.

    NeMo has no ids: the id is the path as written, numbered when it comes again. Canary's `source_lang` counts where
    there is no `lang`; where `target_lang` is another one, the text is a translation, which is refused.
    """
    file, folder, ids = str(path), path.parent, Ids()

    def understand(number: int, values: dict[str, Any]) -> Iterator[Entry | Problem]:
        fields = {key: values[name] for key, name in _READ.items() if values.get(name) is not None}
        fields["id"] = ids.of(fields.get("audio"), number)
        source, target = values.get("source_lang"), values.get("target_lang")
        if source != target and source is not None and target is not None:
            message = f"the text is a translation, from {source!r}; a transcript is expected"
            yield Problem(file=file, line=number, key="target_lang", message=message)
            return
        if "language" in fields or source is not None:
            fields["language"] = plain_language(fields.get("language", source))
        yield Entry(file, number, folder, fields, _NAMES)

    return entries(path, understand)
