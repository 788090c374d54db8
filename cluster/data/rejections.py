"""Which utterances cannot be used, and whether there are too many of them. Pure."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.config import DataConfig
from speech.errors import InputError, Problem, UserError
from speech.records import BadUtterance

logger = logging.getLogger(__name__)

WINDOW = 200
"""Prompts whose share of bad ones `data.max_rejected` bounds: few enough that a fault of the system, which hits every
utterance, ends a run within its first steps; enough that some bad files in a row do not."""
SHOWN = 5
"""Reasons in the message that ends a run."""


class Rejections:
    """Judges what becomes of bad utterances: with `on_bad: skip` their prompts are rejected, unless too many are bad.

    Safe for threads.

    Attributes:
        quarantined: reason by id of each utterance that may not be given to an actor again, in any epoch.
    """

    def __init__(self, config: DataConfig, unfit: Mapping[str, str] | None = None) -> None:
        """`unfit`: reason by id of each utterance that is known to be bad before the first step."""
        self.quarantined: dict[str, str] = {}
        self._skip, self._share = config.on_bad == "skip", config.max_rejected
        self._unfit = dict(unfit or {})
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self._reasons: deque[str] = deque(maxlen=SHOWN)
        self._lock = threading.Lock()

    def state_dict(self) -> dict[str, str]:
        """The quarantine, as JSON values, for a checkpoint."""
        return dict(self.quarantined)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add the quarantine of a checkpoint."""
        self.quarantined |= {str(name): str(reason) for name, reason in state.items()}

    def known(self, utterance_id: str) -> BadUtterance | None:
        """What is known against an utterance before anybody looks at it."""
        if utterance_id in self.quarantined:
            return BadUtterance(utterance_id, f"quarantined: {self.quarantined[utterance_id]}")
        reason = self._unfit.get(utterance_id)
        return None if reason is None else BadUtterance(utterance_id, reason)

    def judge(self, passed: int, bad: Sequence[BadUtterance]) -> None:
        """Take note of prompts that can be used, and of those that cannot.

        Raises:
            InputError: there is a bad one and `data.on_bad` is `error`; naming all.
            UserError: too many of the last `WINDOW` prompts were bad.
        """
        if bad and not self._skip:
            problems = [Problem(f"utterance {item.id}", None, None, item.reason) for item in bad]
            raise InputError("utterances that cannot be used (`data.on_bad: skip` would reject them)", problems)
        bad = [item for item in bad if item.id not in self._unfit]  # these were judged before the first step
        for item in bad:
            logger.warning("utterance %s is rejected: %s", item.id, item.reason)
        with self._lock:
            self.quarantined |= {item.id: item.reason for item in bad if item.lethal}
        self._note(passed, [f"utterance {item.id}: {item.reason}" for item in bad])

    def unscored(self, reasons: Sequence[str], lethal: Mapping[str, str]) -> None:
        """Take note of groups without rewards; `lethal` has the reason by id of utterances that cost reward actors.

        Raises:
            UserError: too many of the last `WINDOW` prompts were bad.
        """
        with self._lock:
            new = {name: reason for name, reason in lethal.items() if self._skip and name not in self.quarantined}
            self.quarantined |= new
        for name, reason in new.items():
            logger.warning("utterance %s is quarantined: %s", name, reason)
        self._note(0, reasons)

    def _note(self, passed: int, reasons: Sequence[str]) -> None:
        with self._lock:
            self._window.extend([False] * passed + [True] * len(reasons))
            self._reasons.extend(reasons)
            bad = sum(self._window)
            if bad > self._share * WINDOW:
                raise UserError(
                    f"{bad} of the last {len(self._window)} prompts could not be used, and `data.max_rejected: "
                    f"{self._share:g}` allows {int(self._share * WINDOW)} of {WINDOW}; the last of them:\n"
                    + "\n".join(f"  {reason}" for reason in self._reasons)
                )
