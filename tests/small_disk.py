"""Disks small enough to be filled."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CannotMountError(Exception):
    """This user cannot mount a file system."""


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of so many MiB is mounted at a folder; what is on it stays in the folder afterwards.

    Raises:
        CannotMountError: that takes root.
    """
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    if mounted.returncode:
        raise CannotMountError(mounted.stderr.decode().strip())
    kept = folder.with_name(f"{folder.name}.kept")
    try:
        yield
        shutil.copytree(folder, kept)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()
    kept.rename(folder)


def can_mount() -> bool:
    """Whether this user can make small disks here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 1):
                return True
        except (CannotMountError, FileNotFoundError):
            return False
