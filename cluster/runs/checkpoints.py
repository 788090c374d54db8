"""Which checkpoints a run has, and whether they are as they were written. What is in them is the learner's and the
loop's affair."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from cluster.runs.digests import damage, write_digests
from cluster.runs.durable import sync_directory, writing
from speech.errors import UserError

STATE_FILE = "state.json"
"""Written last: a folder without it is not a checkpoint."""

SCORE = "score"
"""Key of `state.json`: by which the validation at this step chooses the best (`Scores.score`), or null."""

_STEP = re.compile(r"step-(\d{6,})")


def retained(scores: Mapping[int, float | None], keep: int, keep_best: int) -> set[int]:
    """Which checkpoints stay.

    Args:
        scores: by step, what validation found (lower is better); None where nothing was evaluated.
        keep: how many of the newest.
        keep_best: how many of the best besides; of equal ones the newer.
    """
    best = sorted((score, -step) for step, score in scores.items() if score is not None)
    return set(sorted(scores)[-keep:]) | {-step for _, step in best[:keep_best]}


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
        """Note the digests of all files staged for a step, and rename their folder to its final name. Returns that.

        Raises:
            FileNotFoundError: nothing was staged, or it holds no `state.json`.
            UserError: the disk refuses.
        """
        staged, final = self._staged(step), self.folder(step)
        if not (staged / STATE_FILE).is_file():
            raise FileNotFoundError(f"{staged} holds no {STATE_FILE}")
        with writing(final):
            write_digests(staged)
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

    def verified(self) -> tuple[int | None, list[str]]:
        """The newest checkpoint that is as it was written, and what is wrong with the newer ones.

        The damaged ones are renamed to `….damaged`, so that they do not count any more.

        Raises:
            UserError: there are checkpoints, and all are damaged. They are left as they are.
        """
        bad: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            problem = damage(self.folder(step))
            if problem is None:
                for other, _ in bad:
                    self._set_aside(other)
                return step, [text for _, text in bad]
            bad.append((step, f"{self.folder(step)}: damaged: {problem}"))
        if bad:
            listed = "\n".join(f"  {text}" for _, text in bad)
            raise UserError(
                f"no checkpoint of this run can be used:\n{listed}\nrestore one of them from a copy, or remove "
                f"{self.path} to start at the beginning"
            )
        return None, []

    def discard(self, step: int) -> None:
        """Remove what was staged for a step, because it could not be written."""
        if self._staged(step).exists():
            with writing(self._staged(step)):
                shutil.rmtree(self._staged(step))

    def prune(self, keep: int, keep_best: int = 0) -> None:
        """Remove all but the newest `keep` checkpoints and the `keep_best` best by validation."""
        scores = {step: self.score(step) for step in self.steps()}
        for step in sorted(scores.keys() - retained(scores, keep, keep_best)):
            _remove(self.folder(step))

    def score(self, step: int) -> float | None:
        """What validation found at the step of a checkpoint; None when nothing was evaluated, or it cannot be read."""
        try:
            value = json.loads((self.folder(step) / STATE_FILE).read_text(encoding="utf-8")).get(SCORE)
        except (OSError, ValueError, AttributeError):
            return None
        return float(value) if isinstance(value, int | float) else None

    def _set_aside(self, step: int) -> None:
        damaged = self.folder(step).with_suffix(".damaged")
        with writing(damaged):
            if damaged.exists():
                shutil.rmtree(damaged)
            self.folder(step).rename(damaged)

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
