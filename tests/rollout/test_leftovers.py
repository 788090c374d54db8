"""Real processes are killed that held shared memory, a semaphore, files and children, as an engine's do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path

import psutil
import pytest

from rollout import leftovers
from rollout.leftovers import HOME, MODEL, VARIABLE, EngineHome, free_leftovers, note
from speech.runtime import owned_folders
from speech.runtime.owned_folders import SHARED_MEMORY, WEIGHTS, OwnedFolder

ENGINE = textwrap.dedent("""
    import multiprocessing, os, subprocess, sys, tempfile
    from pathlib import Path
    from rollout.leftovers import MODEL, EngineHome
    from speech.runtime.owned_folders import OwnedFolder

    CORE = '''
    import _multiprocessing, multiprocessing, os, sys, tempfile, time
    from multiprocessing import shared_memory
    from rollout.vllm_process.holdings import note_holdings

    unnoted = _multiprocessing.SemLock(0, 0, 1, f"/loky-{os.getpid()}-x", False)  # before the plug-in is loaded
    note_holdings()
    note_holdings()
    segment = shared_memory.SharedMemory(create=True, size=1 << 20)
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    tempfile.mkstemp()
    print(segment.name, "sem." + semaphore._semlock.name.strip("/"), "sem." + unnoted.name.strip("/"), flush=True)
    time.sleep(300)
    '''

    home = EngineHome()
    model = OwnedFolder(MODEL)
    with home.inherited():
        core = subprocess.Popen([sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True)
    names = core.stdout.readline().split()
    home.note_processes()
    print(home.path, model.path, core.pid, *names, flush=True)
    sys.stdin.read()
""")
"""An actor that has started vLLM's core, as far as leftovers go."""


@dataclass
class Engine:
    actor: subprocess.Popen[str]
    home: Path
    model: Path
    core: psutil.Process
    names: list[str]

    def left(self) -> list[str]:
        """What is there of it, its processes apart."""
        files = [self.home, self.model, *(SHARED_MEMORY / name for name in self.names)]
        return [str(file) for file in files if file.exists()]


@contextmanager
def engine() -> Iterator[Engine]:
    actor = subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert actor.stdout is not None
    home, model, core, *names = actor.stdout.readline().split()
    found = Engine(actor, Path(home), Path(model), psutil.Process(int(core)), names)
    assert len(names) == 3 and len(found.left()) == 5
    try:
        yield found
    finally:
        actor.kill()
        actor.communicate()
        free_leftovers()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of this test alone: leftovers of others are not ours to look at here."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(owned_folders.tempfile.TemporaryDirectory(dir="/tmp")))
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(owned_folders.tempfile, "tempdir", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield folder


@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_killed_engine_held_is_freed(temporary: Path, stopped: bool) -> None:
    with engine() as dead:
        if stopped:
            dead.core.send_signal(signal.SIGSTOP)
        free_leftovers()
        assert len(dead.left()) == 5 and dead.core.is_running(), "its actor lives"
        dead.actor.kill()
        dead.actor.wait()
        free_leftovers()
        assert not dead.left() and not list(temporary.iterdir())
        assert not leftovers._lives(dead.core), "its child holds no GPU any more"


def test_a_tree_that_was_killed_as_a_whole_is_freed(temporary: Path) -> None:
    with engine() as dead:
        for process in [*psutil.Process(dead.actor.pid).children(recursive=True), psutil.Process(dead.actor.pid)]:
            process.kill()
        dead.actor.wait()
        assert len(dead.left()) == 5
        free_leftovers()
        assert not dead.left() and not list(temporary.iterdir())


def test_the_living_keep_what_is_theirs(temporary: Path) -> None:
    with engine() as dead, engine() as living:
        dead.actor.kill()
        dead.actor.wait()
        stranger = shared_memory.SharedMemory(create=True, size=64)
        unused = SHARED_MEMORY / f"psm_nobody_{os.getpid()}"
        unused.touch()
        try:
            looking = [threading.Thread(target=free_leftovers) for _ in range(4)]
            for thread in looking:
                thread.start()
            for thread in looking:
                thread.join()
            assert not dead.left()
            assert len(living.left()) == 5 and living.core.is_running()
            assert (SHARED_MEMORY / stranger.name).exists()
            assert unused.exists(), "nobody maps it, but nobody knows whose it is either"
        finally:
            unused.unlink()
            stranger.close()
            stranger.unlink()


def test_a_segment_that_a_living_process_holds_waits_for_it() -> None:
    with engine() as dead:
        segment = next(name for name in dead.names if name.startswith("psm_"))
        heir = subprocess.Popen(
            [sys.executable, "-c", f"f = open('/dev/shm/{segment}'); print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert heir.stdout is not None and heir.stdout.readline()
        for tracker in dead.core.children():  # Python's own, which would remove the segment if it were the faster one
            tracker.kill()
        dead.actor.kill()
        dead.actor.wait()
        free_leftovers()
        assert dead.left() == [str(dead.home), str(SHARED_MEMORY / segment)]
        heir.communicate(b"\n")
        free_leftovers()
        assert not dead.left()


def test_a_name_that_is_another_file_by_now_is_left_alone(temporary: Path) -> None:
    file = SHARED_MEMORY / f"psm_again_{os.getpid()}"
    file.touch()
    try:
        home = EngineHome()
        note(home.path, file)
        (home.path / "shared-memory").write_text(f"1 {file.name}\nnonsense\n", encoding="utf-8")
        home.leave()
        assert file.exists() and not list(temporary.iterdir())
    finally:
        file.unlink()


def test_an_engine_that_ends_in_order_leaves_its_home_empty(temporary: Path) -> None:
    home = EngineHome()
    assert home.path.parent == temporary
    segment = shared_memory.SharedMemory(create=True, size=64)
    note(home.path, SHARED_MEMORY / segment.name)
    segment.close()
    home.leave()
    assert not (SHARED_MEMORY / segment.name).exists() and not list(temporary.iterdir())
    segment_tracker_forgets(segment)


def segment_tracker_forgets(segment: shared_memory.SharedMemory) -> None:
    """Python's tracker in this process would complain at its end of a name that is gone."""
    from multiprocessing import resource_tracker

    resource_tracker.unregister(segment._name, "shared_memory")  # type: ignore[attr-defined]


def test_only_what_is_started_within_belongs_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before = dict(os.environ)
    home = EngineHome()
    with home.inherited():
        assert os.environ[VARIABLE] == os.environ["TMPDIR"] == os.environ["VLLM_RPC_BASE_PATH"] == str(home.path)
        assert not os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(home.path)), "others use it too"
    assert os.environ == before
    home.leave()


def test_sockets_fit_into_the_home_wherever_temporary_files_go(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = temporary / ("long" * 20)
    deep.mkdir()
    monkeypatch.setattr(owned_folders.tempfile, "tempdir", str(deep))
    home = EngineHome()
    try:
        assert home.path.parent == SHARED_MEMORY
    finally:
        home.leave()
    longest = Path("/" + "x" * (leftovers.LONGEST_ROOT - 1)) / f"speechrl-{HOME}-12345678" / ("y" * 36)
    assert len(str(longest)) <= 107


def test_somebody_elses_folders_stay(temporary: Path) -> None:
    """Those of another user (only root can make some here), links, and names that only look alike."""
    (temporary / f"speechrl-{HOME}s").mkdir()
    (temporary / "target").mkdir()
    (temporary / f"speechrl-{WEIGHTS}-link").symlink_to(temporary / "target")
    if os.geteuid() == 0:
        other = temporary / f"speechrl-{MODEL}-other"
        other.mkdir()
        os.chown(other, 12345, 12345)
    before = sorted(temporary.iterdir())
    free_leftovers()
    assert sorted(temporary.iterdir()) == before


def test_who_looks_between_making_and_locking_takes_no_folder_away(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = owned_folders._lock

    def late(folder: Path) -> int:
        monkeypatch.setattr(owned_folders, "_lock", lock)
        free_leftovers()
        return lock(folder)

    monkeypatch.setattr(owned_folders, "_lock", late)
    with OwnedFolder(WEIGHTS) as folder:
        free_leftovers()
        assert folder.is_dir()
    assert not folder.exists()


def test_who_looks_while_a_folder_is_removed_leaves_it_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go before their folder: between the two another engine looks for leftovers."""
    rmtree = owned_folders.shutil.rmtree
    folder = OwnedFolder(WEIGHTS)

    def slow(path: Path) -> None:
        monkeypatch.setattr(owned_folders.shutil, "rmtree", rmtree)
        free_leftovers()
        assert path.is_dir()
        rmtree(path)

    monkeypatch.setattr(owned_folders.shutil, "rmtree", slow)
    folder.remove()
    assert not folder.path.exists()


def test_what_cannot_be_removed_is_said_and_stops_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (temporary / f"speechrl-{WEIGHTS}-dead").mkdir()

    def refuse(path: Path) -> None:
        raise OSError(f"not allowed: {path}")

    with monkeypatch.context() as patch:
        patch.setattr(leftovers.shutil, "rmtree", refuse)
        free_leftovers()
    assert "stays there: not allowed" in caplog.text
    free_leftovers()
    assert not list(temporary.iterdir())
