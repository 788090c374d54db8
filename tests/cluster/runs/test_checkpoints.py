"""Checkpoints on the disk: verified, retained, written in order beside the training, and whole when the disk is not."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import CheckpointConfig
from cluster.runs.checkpoints import STATE_FILE, CheckpointFolder, retained
from cluster.runs.digests import DIGESTS_FILE, damage
from cluster.runs.saver import CheckpointSaver
from speech.errors import UserError


class ShardWriter:
    """Stands in for the learner: writes one file, at once or when told to."""

    def __init__(self, size: int = 1000) -> None:
        self.size, self.held, self.begun, self.copied = size, False, 0, False
        self.folder: Path | None = None

    def save_in_background(self, folder: str, copy: bool) -> None:
        self.begun += 1
        self.copied = copy
        self.folder = Path(folder)

    def saved(self) -> bool:
        if self.held:
            return False
        assert self.folder is not None
        try:
            (self.folder / "shard").write_bytes(os.urandom(self.size))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write the checkpoint: {error}") from error
        return True


def write(folder: CheckpointFolder, *steps: int, score: float | None = None) -> None:
    for step in steps:
        staged = folder.stage(step)
        (staged / "dcp").mkdir()
        (staged / "dcp" / "shard").write_bytes(os.urandom(1000))
        (staged / STATE_FILE).write_text(json.dumps({"step": step, "score": score}))
        folder.commit(step)


@given(
    st.dictionaries(st.integers(1, 50), st.one_of(st.none(), st.floats(0, 2)), max_size=20),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_retention(scores: dict[int, float | None], keep: int, keep_best: int) -> None:
    kept = retained(scores, keep, keep_best)
    assert set(sorted(scores)[-keep:]) <= kept <= scores.keys()
    evaluated = {step: score for step, score in scores.items() if score is not None}
    best = sorted(evaluated, key=lambda step: (evaluated[step], -step))[:keep_best]
    assert kept == set(sorted(scores)[-keep:]) | set(best)


def test_best_by_validation_stays(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step, score in ((10, 0.4), (20, 0.2), (30, 0.3), (40, None), (50, None)):
        write(folder, step, score=score)
    folder.prune(keep=2, keep_best=1)
    assert folder.steps() == [20, 40, 50]
    folder.prune(keep=1)
    assert folder.steps() == [50]


@pytest.mark.parametrize("how", ["flipped", "short", "missing", "state", "no digests", "digests"])
def test_damaged_checkpoint_is_reported_and_the_one_before_is_used(how: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1, 2)
    assert folder.verified() == (2, [])
    newest = folder.folder(2)
    shard, state = newest / "dcp" / "shard", newest / STATE_FILE
    content = bytearray(shard.read_bytes())
    if how == "flipped":
        content[500] ^= 1
        shard.write_bytes(content)
    elif how == "short":
        shard.write_bytes(content[:-1])
    elif how == "missing":
        shard.unlink()
    elif how == "state":
        state.write_text(state.read_text().replace("2", "3"))
    elif how == "no digests":
        (newest / DIGESTS_FILE).unlink()
    else:
        (newest / DIGESTS_FILE).write_text("[]")
    step, found = folder.verified()
    assert step == 1 and len(found) == 1 and str(newest) in found[0]
    assert folder.steps() == [1] and (tmp_path / "step-000002.damaged").is_dir()
    assert folder.verified() == (1, []), "reported once"
    write(folder, 2)
    assert folder.verified() == (2, [])


def test_no_checkpoint_that_can_be_used_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.verified() == (None, [])
    write(folder, 1, 2)
    for step in (1, 2):
        (folder.folder(step) / "dcp" / "shard").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint of this run can be used:\n.*step-000002.*\n.*step-000001"):
        folder.verified()
    assert folder.steps() == [1, 2]


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(tmp_path: Path) -> None:
    folder, learner = CheckpointFolder(tmp_path), ShardWriter()
    saver = CheckpointSaver(folder, learner, CheckpointConfig(keep=5))
    learner.held = True
    position = {"step": 1, "position": [7]}
    saver.save(1, position)
    position["position"].append(8)  # type: ignore[attr-defined]  # training goes on
    assert not saver.poll() and folder.steps() == []
    learner.held = False
    saver.save(2, {"step": 2})
    assert folder.steps() == [1], "the second began when the first was whole"
    assert json.loads((folder.folder(1) / STATE_FILE).read_text())["position"] == [7]
    saver.wait()
    assert folder.steps() == [1, 2] and learner.begun == 2 and damage(folder.folder(2)) is None


def test_synchronous_and_hanging_writers(tmp_path: Path) -> None:
    folder, learner = CheckpointFolder(tmp_path), ShardWriter()
    CheckpointSaver(folder, learner, CheckpointConfig(asynchronous=False)).save(1, {})
    assert not learner.copied, "nothing changes the state while the run waits"
    assert folder.steps() == [1]
    clock = iter(range(0, 10_000, 100))
    saver = CheckpointSaver(folder, learner, CheckpointConfig(timeout_s=250), lambda: next(clock))
    learner.held = True
    saver.save(2, {})
    with pytest.raises(TimeoutError, match="checkpoint of step 2"):
        saver.wait()
    assert folder.steps() == [1]


def test_a_lost_learner_leaves_only_what_it_had_written_whole(tmp_path: Path) -> None:
    folder, learner = CheckpointFolder(tmp_path), ShardWriter()
    saver = CheckpointSaver(folder, learner, CheckpointConfig(keep=5))
    saver.save(1, {"step": 1})
    saver.poll()  # its shards are there; digests and name may still be missing
    saver.abandon()
    assert folder.verified() == (1, [])
    learner.held = True
    saver.save(2, {"step": 2})
    saver.abandon()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"] and saver.poll()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a file system: {made.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(small_disk: Path) -> None:
    folder, learner = CheckpointFolder(small_disk / "checkpoints"), ShardWriter(400_000)
    saver = CheckpointSaver(folder, learner, CheckpointConfig(keep=5))
    saver.save(1, {"step": 1})
    saver.wait()
    learner.size = 2_000_000
    saver.save(2, {"step": 2})
    with pytest.raises(UserError, match="No space left"):
        saver.wait()
    assert [entry.name for entry in folder.path.iterdir()] == ["step-000001"], "nothing half-written is left"
    assert folder.verified() == (1, [])
    learner.size = 100_000  # the disk has room again
    saver.save(2, {"step": 2})
    saver.wait()
    assert folder.verified() == (2, [])


def test_read_only_disk(small_disk: Path) -> None:
    folder, learner = CheckpointFolder(small_disk / "checkpoints"), ShardWriter()
    saver = CheckpointSaver(folder, learner, CheckpointConfig())
    saver.save(1, {"step": 1})
    saver.wait()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot write: Read-only file system"):
        saver.save(2, {"step": 2})
    assert time.monotonic() - started < 5
    assert folder.verified() == (1, [])
