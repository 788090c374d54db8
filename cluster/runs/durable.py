"""Files of one JSON object per line, which survive `kill -9` and a full disk, and can be taken back to a step."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speech.errors import UserError

_BLOCK = 2**20


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into a message that names the path.

    Not for a block that waits for something: a `TimeoutError` (Ray's too) is an `OSError`.

    Raises:
        UserError: the disk is full, read-only, gone, …
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space left; free some, then run the same command again to resume"
        else:
            reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot write: {reason}") from error


def dumps(record: Mapping[str, Any]) -> str:
    """One line of strict JSON; NaN and infinities, which JSON has not, become null."""
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add lines and wait until they are on the disk.

    Raises:
        UserError: see `writing`.
    """
    text = "".join(dumps(record) + "\n" for record in records)
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, text: str) -> None:
    """Write a whole file so that a reader, or a crash, sees either the old or the new one.

    Raises:
        UserError: see `writing`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)


def mend(path: Path) -> None:
    """Cut off a last line that a crash or a full disk has left unfinished, so that what is added begins a new one.

    Raises:
        UserError: see `writing`.
    """
    if not path.exists():
        return
    with writing(path), path.open("r+b") as file:
        size = start = file.seek(0, os.SEEK_END)
        whole = 0
        while start and not whole:  # from the end, because the file may be large
            end, start = start, max(0, start - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            whole = 0 if newline < 0 else start + newline + 1
        if whole < size:
            file.truncate(whole)


def sync_directory(path: Path) -> None:
    """Make renames inside a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a file; none if there is no file. A last line cut off by a crash is left out.

    Raises:
        UserError: a line before the last is not JSON.
    """
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    tail = lines.pop()  # "" when the last line is complete; otherwise the line that was being written
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            # A file system may keep a torn line's length but not its content, so that its newline is there.
            if number == len(lines) and not tail:
                break
            raise UserError(f"{path}:{number}: not valid JSON: {error.msg}") from error
    return records


def rewind(path: Path, step: int) -> int:
    """Drop the lines whose `step` is later than this one, and a torn last line. Returns how many lines are left."""
    if not path.exists():
        return 0
    kept = [record for record in read(path) if record["step"] <= step]
    replace(path, "".join(dumps(record) + "\n" for record in kept))
    return len(kept)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
