"""Which checkpoints a run has. What is in them is the learner's and the loop's affair."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cluster.jsonl import sync_directory, writing

STATE_FILE = "state.json"
"""Written last: a folder without it is not a checkpoint."""

_STEP = re.compile(r"step-(\d{6,})")


class CheckpointFolder:
    """`checkpoints/step-NNNNNN/`, each written under another name and renamed once it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, oldest first."""
        if not self.path.is_dir():
            return []
        matches = ((_STEP.fullmatch(entry.name), entry) for entry in self.path.iterdir())
        return sorted(int(match[1]) for match, entry in matches if match and (entry / STATE_FILE).is_file())

    def latest(self) -> int | None:
        """The newest step that has a whole checkpoint, or None."""
        return max(self.steps(), default=None)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self.path / f"step-{step:06d}"

    def stage(self, step: int) -> Path:
        """A new empty folder to write the checkpoint of a step into; `commit` makes it count.

        Raises:
            UserError: the folder cannot be made.
        """
        staged = self._staged(step)
        with writing(staged):
            if staged.exists():
                shutil.rmtree(staged)
            staged.mkdir(parents=True)
        return staged

    def commit(self, step: int) -> Path:
        """Rename the staged folder of a step to its final name. Returns that.

        Raises:
            FileNotFoundError: nothing was staged, or it holds no `state.json`.
            UserError: the disk refuses.
        """
        staged, final = self._staged(step), self.folder(step)
        if not (staged / STATE_FILE).is_file():
            raise FileNotFoundError(f"{staged} holds no {STATE_FILE}")
        with writing(final):
            if final.exists():  # the same step again, after training resumed from an earlier one
                _remove(final)
            staged.rename(final)
            sync_directory(self.path)
        return final

    def export(self, final: Path) -> None:
        """Copy the newest checkpoint's model (`hf`) to `final`, in the place of an earlier one."""
        latest = self.latest()
        if latest is None:
            return
        staged, old = final.with_name(f"{final.name}.tmp"), final.with_name(f"{final.name}.old")
        with writing(final):
            for folder in (staged, old):
                if folder.exists():
                    shutil.rmtree(folder)
            shutil.copytree(self.folder(latest) / "hf", staged)
            if final.exists():
                final.rename(old)
            staged.rename(final)
            if old.exists():
                shutil.rmtree(old)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for step in self.steps()[:-keep]:
            _remove(self.folder(step))

    def clean(self) -> None:
        """Remove what a crash left half-written."""
        if not self.path.is_dir():
            return
        for entry in self.path.iterdir():
            unfinished = _STEP.fullmatch(entry.name) and not (entry / STATE_FILE).exists()
            if entry.is_dir() and (entry.name.endswith(".tmp") or unfinished):
                with writing(entry):
                    shutil.rmtree(entry)

    def _staged(self, step: int) -> Path:
        return self.path / f"step-{step:06d}.tmp"


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; a crash on the way must leave no folder that still passes for one."""
    with writing(checkpoint):
        (checkpoint / STATE_FILE).unlink()
        shutil.rmtree(checkpoint)
