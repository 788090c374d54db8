"""What of the working folder travels with a job: measured before it is sent, by Ray's own rules."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray._private.ray_constants import (
    DASHBOARD_CLIENT_MAX_SIZE,
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from cluster.jobs.client import mebibytes
from speech.errors import UserError

EXCLUDED = (".venv", ".git", "/runs", "/build", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
"""What of the working folder does not travel (patterns of .gitignore, besides the folder's own .gitignore)."""

_LARGEST = 5
"""So many folders are named when the upload is too large."""


@dataclass(frozen=True)
class Upload:
    """What travels.

    Attributes:
        folder: resolved.
        sizes: bytes of each file, by its path below the folder.
        empty: folders without content, which travel too.
    """

    folder: Path
    sizes: Mapping[str, int]
    empty: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes of the package that Ray makes of it: an uncompressed zip file."""
        names = [*self.sizes, *(f"{name}/" for name in self.empty)]
        return sum(self.sizes.values()) + sum(76 + 2 * len(os.fsencode(name)) for name in names) + 22

    def lacks(self, path: str) -> str | None:
        """Why a file, or all that is in a folder, does not travel; None where it does.

        Args:
            path: relative to the folder.
        """
        name = os.path.normpath(path)
        if name == "." or name in self.sizes or any(other.startswith(f"{name}/") for other in self.sizes):
            return None
        if name.startswith(".."):
            return f"lies outside {self.folder}, which travels with the job"
        if not (self.folder / name).exists():
            return f"is not in {self.folder}, which travels with the job"
        return f"a pattern of .gitignore or .rayignore, or one of ours ({' '.join(EXCLUDED)}), leaves it out"

    def check_size(self) -> None:
        """
        Raises:
            UserError: the Jobs server would not take it. Says what is large.
        """
        if self.size <= DASHBOARD_CLIENT_MAX_SIZE:
            return
        listed = "".join(f"\n  {mebibytes(size):>12}  {name}" for name, size in self._largest())
        raise UserError(
            f"{self.folder}: {mebibytes(self.size)} in {len(self.sizes):,} files would travel with the job, and the "
            f"Jobs server takes {mebibytes(DASHBOARD_CLIENT_MAX_SIZE)} at most. The largest:{listed}\n"
            f"name what the job does not need in .gitignore or .rayignore, keep data and models on a file system that "
            f"all nodes share, or use another --working-dir or --no-upload"
        )

    def _largest(self) -> list[tuple[str, int]]:
        """Folders and files with their bytes; one that holds most of its parent stands in the parent's place."""
        totals: Counter[str] = Counter()
        inside: defaultdict[str, set[str]] = defaultdict(set)
        for name, size in self.sizes.items():
            totals[name] += size
            below = name
            for parent in map(str, PurePosixPath(name).parents):
                inside[parent].add(below)
                totals[parent] += size
                below = parent
        found = []
        for name in sorted(inside["."], key=lambda entry: (-totals[entry], entry))[:_LARGEST]:
            while name in inside and totals[most := max(inside[name], key=totals.__getitem__)] > 0.8 * totals[name]:
                name = most
            found.append((f"{name}/" if name in inside else name, totals[name]))
        return found


def measure(folder: Path) -> Upload:
    """What of a folder travels.

    Raises:
        UserError: it holds something that cannot be read.
    """
    folder = folder.resolve()
    sizes: dict[str, int] = {}
    empty: set[str] = set()

    def add(path: Path) -> None:
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and path.is_dir() and path.parent.resolve().is_relative_to(path.resolve()):
            raise OSError(f"{path}: a link to a folder around it, in which there is no end")
        if path.is_file():
            if not os.access(path, os.R_OK):
                raise PermissionError(f"{path}: no permission to read it")
            sizes[name] = path.stat().st_size
        elif path.is_dir() and next(path.iterdir(), None) is None:
            empty.add(name)

    excludes = _get_excludes(folder, [*get_runtime_env_default_excludes(), *EXCLUDED])
    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    silent = logging.Logger("upload", logging.CRITICAL + 1)  # what is wrong is said below
    try:
        _dir_travel(folder, [excludes], add, gitignore, silent)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot travel with the job: {error}; name it in .gitignore or .rayignore"
        ) from error
    return Upload(folder, sizes, frozenset(empty))
