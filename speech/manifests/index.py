"""The index of a long manifest: what was read out of it and out of its audio headers, kept for the next start.

It is a file beside the manifest (`.train.jsonl.index`), or, where that folder cannot be written, in the user's cache
folder. It is a cache: it counts only for the very files that it was made of, and a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import speech
from speech.manifests.formats import FORMATS
from speech.manifests.scan import Scan, read_scan
from speech.manifests.store import DamagedStoreError

logger = logging.getLogger(__name__)

INDEXED_FROM = 10_000
"""Utterances. A shorter manifest is read faster than a user could notice."""

INDEX = "index"

_CLOCK_NS = 2_000_000_000
"""A file may change twice within one tick of its file system's clock, so that its time tells nothing."""


def index_key(path: Path, format: str, require_text: bool) -> dict[str, Any]:
    """What an index must have been made of: the files with size and time of change, the options, and our own code."""
    stats = [(file, file.stat()) for file in FORMATS[format].files(path) if file.exists()]
    return {
        "files": [["" if file == path else file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats],
        "format": format,
        "require_text": require_text,
        "code": code_digest("speech/*.py", "speech/containers/*.py", "speech/manifests/**/*.py", "speech/text/*.py"),
    }


def read_index(path: Path, key: dict[str, Any]) -> Scan | None:
    """What the index of a manifest holds, or None where there is none that counts."""
    for place in _places(path, INDEX):
        try:
            with place.open("rb") as file:
                found, header = read_scan(file, path)
        except OSError:
            continue
        except DamagedStoreError as error:
            logger.warning("%s: damaged (%s); it is made again", place, error)
            continue
        if header.get("key") == key:
            return found
    return None


def write_index(path: Path, key: dict[str, Any], found: Scan) -> Path | None:
    """Keep what was found for the next start; says where, or None where no folder can be written."""
    now = time.time_ns()
    if any(abs(now - changed) < _CLOCK_NS for _, _, changed in key["files"]):
        return None
    return write_beside(path, INDEX, found.to_bytes(path, {"key": key}))


def read_beside(path: Path, name: str) -> Iterator[bytes]:
    """What `write_beside` may have kept of a manifest under a name, the best place first."""
    for place in _places(path, name):
        with suppress(OSError):
            yield place.read_bytes()


def write_beside(path: Path, name: str, data: bytes) -> Path | None:
    """Keep something about a manifest; says where, or None where no folder can be written.

    Several processes may write at the same time: each file is whole, and the last one stays.
    """
    for place in _places(path, name):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f"{place.name}.", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fchmod(file.fileno(), 0o644)  # others read the same manifest
                    os.fsync(file.fileno())
                    Path(file.name).replace(place)
                except BaseException:
                    with suppress(OSError):
                        Path(file.name).unlink()
                    raise
        except OSError as error:
            logger.info("%s: cannot be kept there: %s", place, error.strerror or error)
            continue
        return place
    return None


def _places(path: Path, name: str) -> list[Path]:
    """Where something about a manifest may be, the best place first."""
    path = path.absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return [path.with_name(f".{path.name}.{name}"), caches / "speechrl" / f"{path.name}.{folder}.{name}"]


@cache
def code_digest(*patterns: str) -> str:
    """A hash of the code that decides what is kept: another release reads the manifest again.

    Args:
        patterns: of source files, below the folder in which our packages are.
    """
    root = Path(speech.__file__).parent.parent
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted({file for pattern in patterns for file in root.glob(pattern)}):
        digest.update(file.read_bytes())
    return digest.hexdigest()
