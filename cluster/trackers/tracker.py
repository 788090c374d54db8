"""What an experiment tracker is to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = "speechrl"
"""Where runs are kept in a tracker, unless the tracker's own environment variable says otherwise."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        name: of the run.
        folder: of the run; what a tracker keeps on this machine goes into a folder below it.
        config: the resolved configuration, nested.
        known_as: what `Tracker.id` was in an earlier execution of this run; None in the first.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    known_as: str | None


class Tracker(ABC):
    """One run in one tracker. Called from one thread alone, in which it is also made.

    Any exception is taken for the end of this tracker, and never of the run (`cluster.trackers.trackers`). Steps that
    training repeats after a fall-back to a checkpoint are given again, with the same numbers.

    Attributes:
        id: by which a resumed run finds itself again.
    """

    id: str

    @abstractmethod
    def __init__(self, run: TrackedRun) -> None:
        """Begin, or go on with, the run of `run.known_as`."""

    @abstractmethod
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a finished step; NaN where a step has no value."""

    @abstractmethod
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table of texts and numbers."""

    @abstractmethod
    def audio(self, name: str, wave: np.ndarray, sample_rate: int, step: int) -> None:
        """A sound: float32 (samples,) in [-1, 1] at `sample_rate` Hz."""

    @abstractmethod
    def close(self, summary: Mapping[str, float]) -> None:
        """The run ends here, for now or for good.

        Args:
            summary: numbers of `summary.json`, by dotted key; empty when it ended by an error.
        """
