"""The data that a run began with, kept in its folder: a changed manifest is noticed, and what has changed is named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.runs.durable import writing
from speech.errors import UserError, first_of
from speech.manifests import Manifest
from speech.manifests.entries import KEYS
from speech.manifests.store import DamagedStoreError, Utterances, read_store, stored
from speech.records import Utterance

_SHOWN = 3

_REMEDIES = {
    "valid": "its error rates would not compare: resume with the old data, or with evaluation.every=0",
    "test": "the evaluation before training is of the old data: resume with it, or with evaluation.before=false",
}
_REMEDY = "resume with the old data, or start a run with another name"


def check_data(folder: Path, manifests: Mapping[str, Manifest], resumed: bool) -> None:
    """Compare the manifests with those that the run began with, and keep those that it begins with now.

    Args:
        folder: of the run; the data are in `data/<split>.utterances` below it.
        resumed: whether the run continues from a checkpoint; otherwise it begins with what it finds.

    Raises:
        UserError: utterances have changed; the message names them and says how. Nothing has been written then.
    """
    changes = []
    to_write: dict[Path, Utterances] = {}
    for split, manifest in manifests.items():
        file, now = folder / "data" / f"{split}.utterances", stored(manifest.utterances)
        before = _read(file, now.folder) if resumed else None
        if before is not None:
            found = differences(before, now)
            if found:
                lines = "".join(f"\n    {line}" for line in found)
                remedy = _REMEDIES.get(split, _REMEDY)
                changes.append(f"\n  data.{split}: {manifest.path}:{lines}\n    {remedy}")
        # Headers that were read meanwhile are kept too, for the comparison after this one.
        if before is None or not np.array_equal(_sounds(before), _sounds(now)):
            to_write[file] = now
    if changes:
        raise UserError(f"{folder}: the data have changed since the run began{''.join(changes)}")
    for file, utterances in to_write.items():
        _write(file, utterances.to_bytes({}))


def differences(before: Utterances, now: Utterances) -> list[str]:
    """What has changed, in a few lines with the ids of the first utterances; nothing where all is the same.

    The folders of the audio files are not compared, and neither are files whose headers were not read both times.
    """
    if before.fingerprint() == now.fingerprint():
        return _sounding(before, now)
    old = {name: index for index, name in enumerate(before.ids())}
    new = {name: index for index, name in enumerate(now.ids())}
    kept = [name for name in new if name in old]
    old_rows = before.rows[[old[name] for name in kept]] if kept else before.rows[:0]
    new_rows = now.rows[[new[name] for name in kept]] if kept else now.rows[:0]
    changed = before.columns.contents[old_rows] != now.columns.contents[new_rows]
    pairs = zip(before.select(old_rows[changed]).as_written(), now.select(new_rows[changed]).as_written(), strict=True)
    lines = []
    if changed.any():
        said = (f"{one.id} ({_fields(one, other)})" for one, other in pairs)
        lines.append(f"{np.count_nonzero(changed):,} changed: {first_of(said, _SHOWN)}")
    same = before.select(old_rows[~changed]), now.select(new_rows[~changed])
    lines += _sounding(*same)
    for text, ours, others in (("gone", old, new), ("new", new, old)):
        names = [name.decode("utf-8", "replace") for name in ours if name not in others]
        if names:
            lines.append(f"{len(names):,} {text}: {first_of(names, _SHOWN)}")
    return lines or ["the lines are in another order"]


def _sounding(before: Utterances, now: Utterances) -> list[str]:
    """The utterances, the same in both, whose files have another content."""
    one, other = _sounds(before), _sounds(now)
    changed = (one != other) & (one != 0) & (other != 0)
    found = now.select(now.rows[changed])
    if not found:
        return []
    return [f"{len(found):,} with another audio file: {first_of((u.id for u in found), _SHOWN)}"]


def _sounds(utterances: Utterances) -> np.ndarray:
    return utterances.columns.sounds[utterances.rows]


def _fields(one: Utterance, other: Utterance) -> str:
    """The keys that differ, with both values."""
    pairs = ((key, getattr(one, key), getattr(other, key)) for key in KEYS)
    return ", ".join(f"{key}: {old!r} → {new!r}" for key, old, new in pairs if old != new)


def _read(file: Path, folder: str) -> Utterances | None:
    try:
        with file.open("rb") as stream:
            return read_store(stream, folder)[0]
    except FileNotFoundError:
        return None  # a run of an earlier release
    except DamagedStoreError as error:
        raise UserError(f"{file}: damaged ({error}); remove it to resume without a comparison of the data") from error


def _write(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    with writing(file):
        file.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
