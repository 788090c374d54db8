"""What an engine's processes hold besides their memory is noted while they live, and freed when they are gone.

A killed process gives nothing back that has a name: shared memory, semaphores, socket files, temporary folders. Its
children may outlive it, stopped ones for ever, and hold a GPU. So every engine has a home: a folder that its actor
locks, in which vLLM's processes have their temporary files and sockets, and where the names of their shared memory are
noted. A home that nobody locks is a dead engine's, and says what is to be freed.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

from speech.runtime.owned_folders import NOTES, SHARED_MEMORY, WEIGHTS, OwnedFolder, abandoned

logger = logging.getLogger(__name__)

HOME, MODEL = "vllm", "model"
"""Kinds of owned folders: an engine's home, and the model that it is started from."""
VARIABLE = "SPEECHRL_ENGINE_HOME"
"""Environment variable of an engine's processes: its home. It tells whose they are."""
LONGEST_ROOT = 45
"""Characters of the folder for temporary files. In a home in it vLLM makes sockets, whose paths may have 107; a random
name has 36."""
END_TIMEOUT_S = 10.0
"""A killed process ends at once, except where it waits for a device."""

Inode = tuple[int, int]
"""Device and inode."""


class EngineHome:
    """The home of one engine, made and locked by the process that starts it."""

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir())
        self._folder = OwnedFolder(HOME, root if len(str(root)) <= LONGEST_ROOT else SHARED_MEMORY)
        self.path = self._folder.path

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Processes that are started meanwhile belong to this engine; one engine at a time in a process."""
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        resource_tracker.ensure_running()  # it is this process's, and not the engine's
        mine = {
            VARIABLE: str(self.path),
            "TMPDIR": str(self.path),
            "VLLM_RPC_BASE_PATH": str(self.path),
            # Where it is without us: it serves the engines to come too.
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()),
        }
        before = {name: os.environ.get(name) for name in mine}
        os.environ.update(mine)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def note_processes(self) -> None:
        """Note the shared memory that the engine's processes hold now, whoever in them has made it."""
        held: set[Inode] = set()
        for process in _processes(self.path):
            held |= held_by(process.pid)
        for file in SHARED_MEMORY.iterdir():
            with suppress(FileNotFoundError):
                if _inode(file) in held and file.is_file():
                    note(self.path, file)

    def leave(self) -> None:
        """Free what the engine's processes, which should have ended, did not free themselves."""
        self._folder.abandon()
        free_leftovers()


def note(home: Path, file: Path) -> None:
    """Note a file in `/dev/shm` that exists as an engine's."""
    with (home / NOTES).open("a", encoding="utf-8") as notes:
        notes.write(f"{file.stat().st_ino} {file.name}\n")


def free_leftovers() -> None:
    """Free what dead engines of this user have left on this node; harmless at any time, and beside itself.

    Their processes that still run are ended. Shared memory that a living process holds stays, whosever it is, and so
    does the home that tells of it, for the next call.
    """
    for home in abandoned(HOME):
        if _end(_processes(home)) and _free_shared_memory(home):
            _remove(home)
    for kind in (MODEL, WEIGHTS):
        for folder in abandoned(kind):
            if _free_shared_memory(folder):
                _remove(folder)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:  # nobody waits for it, and the next call tries again
        logger.warning("what a dead engine left in %s stays there: %s", folder, error)


def _processes(home: Path) -> list[psutil.Process]:
    """Those that were started as an engine's."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(VARIABLE) == str(home):
                found.append(process)
    return found


def _end(processes: list[psutil.Process]) -> bool:
    """Kill processes; whether all are gone then."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            logger.warning("process %d (%s) outlived its engine and is ended", process.pid, process.name())
            process.kill()
    deadline = time.monotonic() + END_TIMEOUT_S
    while (living := any(_lives(process) for process in processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not living


def _lives(process: psutil.Process) -> bool:
    """A zombie, which a container without an init keeps for ever, holds nothing any more."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _free_shared_memory(home: Path) -> bool:
    """Remove what a home's notes name; False where a living process holds some of it."""
    notes = home / NOTES
    left: dict[Path, Inode] = {}
    for line in notes.read_text(encoding="utf-8").splitlines() if notes.exists() else ():
        number, _, name = line.partition(" ")
        file = SHARED_MEMORY / name
        with suppress(FileNotFoundError):
            if str(_inode(file)[1]) == number and file.stat().st_uid == os.geteuid():  # else another's of that name
                left[file] = _inode(file)
    if not left:
        return True
    held = set().union(*(held_by(pid) for pid in psutil.pids()))
    for file, inode in left.items():
        if inode not in held:
            file.unlink(missing_ok=True)
    return held.isdisjoint(left.values())


def held_by(pid: int) -> set[Inode]:
    """Files in `/dev/shm` that a process has mapped or open; nothing where it is gone or another user's.

    A semaphore is mapped under a name that it had for a moment, so names do not tell.
    """
    device = SHARED_MEMORY.stat().st_dev
    found: set[Inode] = set()
    with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            major, minor, inode = (*line.split()[3].split(":"), line.split()[4])
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if entry.readlink().is_relative_to(SHARED_MEMORY):  # to ask others may wait for a network for ever
                    found.add(_inode(entry))
    return {inode for inode in found if inode[0] == device}


def _inode(file: Path) -> Inode:
    status = file.stat()
    return status.st_dev, status.st_ino
