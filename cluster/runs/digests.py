"""A checkpoint's files, held against what was written: `digests.json` has the size and SHA-256 of each."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.runs import durable

DIGESTS_FILE = "digests.json"

_THREADS = 4  # hashlib and the disk work without the interpreter's lock


def write_digests(folder: Path) -> None:
    """Make the files of a folder durable and write their sizes and digests beside them.

    Raises:
        OSError, UserError: the disk refuses.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(pool.map(lambda path: (path.relative_to(folder).as_posix(), _entry(path)), _files(folder)))
    durable.replace(folder / DIGESTS_FILE, json.dumps(found, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_digests` was called for; None when every file is as it was written.

    Files that were added later are no damage, and are not read.
    """
    try:
        expected: dict[str, dict[str, Any]] = json.loads((folder / DIGESTS_FILE).read_text(encoding="utf-8"))
        if not expected:
            return f"{DIGESTS_FILE} is empty"
        present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        for name, entry in expected.items():
            if name not in present:
                return f"{name} is missing"
            size = present[name].stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size:,} bytes instead of {entry['bytes']:,}"
        with ThreadPoolExecutor(_THREADS) as pool:
            digests = pool.map(lambda name: _digest(present[name]), expected)
            for (name, entry), digest in zip(expected.items(), digests, strict=True):
                if digest != entry["sha256"]:
                    return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{DIGESTS_FILE} is not what was written"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS_FILE)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # whoever wrote it may not have waited
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
