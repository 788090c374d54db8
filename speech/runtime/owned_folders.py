"""Temporary folders that tell whether their owner lives: it holds a lock on them, which goes however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""A tmpfs: a file here is memory that every process of the node can map without a copy."""
WEIGHTS = "weights"
"""Kind of the folders that hold a publication: its sender's, and those of engines that load it."""
NOTES = "shared-memory"
"""File in such a folder: inode and name of each file in `/dev/shm` that goes with it, one a line."""
UNLOCKED = "speechrl-new-"
"""Prefix of a folder that its owner has not locked yet: `abandoned` does not look at it."""


class OwnedFolder:
    """A folder that is locked as long as this process lives and has not removed it. As a context manager, it is
    removed at the end.

    Attributes:
        path: in `root`, under a name that begins with `speechrl-` and its kind.
    """

    def __init__(self, kind: str, root: Path | None = None) -> None:
        """`root`: None takes the folder for temporary files."""
        # Under its own name only once it is locked: who looks for abandoned folders at this moment would remove it.
        unlocked = Path(tempfile.mkdtemp(prefix=UNLOCKED, dir=root))
        self._lock = _lock(unlocked)
        self.path = unlocked.rename(unlocked.with_name(unlocked.name.replace(UNLOCKED, _prefix(kind), 1)))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove it with all that is in it, and only then give the lock up."""
        shutil.rmtree(self.path)
        self.abandon()

    def abandon(self) -> None:
        """Give the lock up."""
        os.close(self._lock)


def abandoned(kind: str) -> Iterator[Path]:
    """Folders of this user whose owner is gone, on this node; each is locked until the next is asked for."""
    for root in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for folder in root.glob(f"{_prefix(kind)}*"):
            try:
                lock = _lock(folder)
            except OSError:  # held by its owner or by another who looks, of another user, or gone by now
                continue
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    yield folder
            finally:
                os.close(lock)


def has_owner(folder: Path) -> bool:
    """Whether the process that made it lives and has not removed it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who asks is not in the way of others who ask
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _prefix(kind: str) -> str:
    return f"speechrl-{kind}-"


def _lock(folder: Path) -> int:
    """Lock the folder itself, not a file in it: that would be gone before the folder is, and look like an orphan's.

    Returns a descriptor, which holds the lock until it is closed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
