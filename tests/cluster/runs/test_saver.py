"""A checkpoint whose learner dies while it is written: it counts where it was whole, and else leaves nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.config.schema import CheckpointConfig
from cluster.runs.checkpoints import CheckpointFolder
from cluster.runs.saver import CheckpointSaver
from learner.gang import LearnerLostError


class DyingWriter:
    """Stands in for the learner: writes the first of two files, and then lives or dies."""

    def __init__(self, dies: str = "") -> None:
        self.dies = dies

    def save_in_background(self, folder: str, copy: bool) -> None:
        self.folder = Path(folder)
        (self.folder / "first").write_bytes(b"1" * 1000)
        self._perhaps_die("begin")

    def saved(self) -> bool:
        self._perhaps_die("write")
        (self.folder / "second").write_bytes(b"2" * 1000)
        return True

    def _perhaps_die(self, moment: str) -> None:
        if self.dies == moment:
            raise LearnerLostError(f"rank 0 is lost ({moment})")


def saver(folder: CheckpointFolder, writer: DyingWriter) -> CheckpointSaver:
    return CheckpointSaver(folder, writer, CheckpointConfig(keep=5))


@pytest.mark.parametrize("moment", ["begin", "write"])
def test_a_learner_that_dies_before_all_is_written_leaves_no_checkpoint(moment: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    first = saver(folder, DyingWriter())
    first.save(1, {"step": 1})
    first.wait()
    lost = saver(folder, DyingWriter(moment))
    with pytest.raises(LearnerLostError, match="rank 0 is lost"):
        lost.save(2, {"step": 2})
        lost.wait()
    assert folder.verified() == (1, []), "what is half-written does not count, even before it is removed"
    lost.abandon()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"] and lost.poll()
    again = saver(folder, DyingWriter())
    again.save(2, {"step": 2})
    again.wait()
    assert folder.verified() == (2, []), "the learner in its place takes the step anew"


def test_a_learner_that_dies_once_all_is_written_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last shard and the folder's final name the learner is no longer needed."""
    folder, writer = CheckpointFolder(tmp_path), DyingWriter()
    commit, reached, go_on = folder.commit, threading.Event(), threading.Event()

    def held(step: int) -> Path:
        reached.set()
        assert go_on.wait(60)
        return commit(step)

    monkeypatch.setattr(folder, "commit", held)
    taken = saver(folder, writer)
    taken.save(1, {"step": 1})
    assert not taken.poll() and reached.wait(60)
    writer.dies = "write"
    assert not taken.poll(), "the dead learner is not asked again"
    assert folder.steps() == []
    abandoning = threading.Thread(target=taken.abandon)
    abandoning.start()
    go_on.set()
    abandoning.join(60)
    assert not abandoning.is_alive() and folder.verified() == (1, [])
