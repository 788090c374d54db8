"""How a run that was stopped tells `speechrl stop` what it saved.

Ray's Jobs API has an exit code only for a job that ended by itself: of a job that it was asked to stop it knows no more
than STOPPED. Whoever asks may see neither the run's folder nor its cluster's key-value store, but always the job's log.
So the run writes its state there, as one line of JSON that is made to be read by a program.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

_MARK = "speechrl-state "


@dataclass(frozen=True, slots=True)
class JobState:
    """Where the training of a run has ended.

    Attributes:
        step: the last step that was trained.
        checkpoint: the newest step with a whole checkpoint; None when there is none.
    """

    step: int
    checkpoint: int | None

    @property
    def saved(self) -> bool:
        """Whether nothing that was trained is lost."""
        return self.checkpoint == self.step or self.step == 0


def announce(state: JobState) -> None:
    """Write a state to the log of the job that this process is."""
    sys.stdout.write(f"{_MARK}{json.dumps(asdict(state))}\n")
    sys.stdout.flush()


def announced(log: str) -> JobState | None:
    """The last state in a job's log; None when the run ended without one."""
    for line in reversed(log.splitlines()):
        if line.startswith(_MARK):
            try:
                return JobState(**json.loads(line.removeprefix(_MARK)))
            except (json.JSONDecodeError, TypeError):  # cut off, or of another release
                return None
    return None
