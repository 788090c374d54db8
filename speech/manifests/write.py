"""Writing our own jsonl manifest."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from speech.errors import UserError
from speech.manifests.entries import KEYS
from speech.records import Utterance


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write our jsonl, complete or not at all; compressed by gzip where the name ends in `.gz`.

    Audio files and prompt voices below the manifest's folder are written relative to it, so that the folder can be
    moved; others stay absolute. Fields that hold their default are left out.

    Raises:
        UserError: the folder cannot be created or written.
    """
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be created: {error.strerror}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            # Without the time, which would make another file of the same lines.
            packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else nullcontext(file)
            with packed as lines:
                for utterance in utterances:
                    lines.write(f"{json.dumps(_fields(utterance, path.parent), ensure_ascii=False)}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fields(utterance: Utterance, folder: Path) -> dict[str, object]:
    values: dict[str, object] = {key: getattr(utterance, key) for key in KEYS}
    values["text"] = utterance.instructed_text
    for key in ("audio", "prompt_audio"):
        if values[key]:
            audio = Path(str(values[key]))
            values[key] = str(audio.relative_to(folder) if audio.is_relative_to(folder) else audio)
    if utterance.duration is not None:
        # A microsecond is finer than a sample at any rate in use.
        values["duration"] = round(utterance.duration, 6)
    if utterance.start == 0.0:
        del values["start"]
    return {key: value for key, value in values.items() if key in ("id", "text") or value not in (None, (), "", {})}
