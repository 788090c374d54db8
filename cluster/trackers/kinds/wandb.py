"""Weights & Biases. `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE` and the others of its client are respected."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cluster.config.registries import TRACKERS
from cluster.trackers.tracker import PROJECT, TrackedRun, Tracker
from speech.runtime.importing import import_extra

logger = logging.getLogger(__name__)


@TRACKERS.register("wandb")
class WandbTracker(Tracker):
    """Without a login everything is kept in `<run>/wandb/`, for `wandb sync`.

    The step is a metric, and the x axis of all others: W&B's own step may not go back, and a run that falls back to a
    checkpoint does.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._wandb = import_extra("trackers", "wandb", "wandb", "the tracker wandb")
        self.id = run.known_as or secrets.token_hex(4)
        # Without a login its client asks for a key at the terminal, which is the display's.
        mode = None if "WANDB_MODE" in os.environ or logged_in() else "offline"
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self.id,
            resume="allow",
            dir=str(run.folder),
            mode=mode,
            config=dict(run.config),
            settings=self._wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if self._run.settings._offline:
            logger.info("wandb is offline; to send the run later: wandb sync %s", self._run.settings.sync_dir)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        table = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({"step": step, name: table})

    def audio(self, name: str, wave: np.ndarray, sample_rate: int, step: int) -> None:
        self._run.log({"step": step, name: self._wandb.Audio(wave, sample_rate=sample_rate)})

    def close(self, summary: Mapping[str, float]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if summary else 1)


def logged_in() -> bool:
    """Whether W&B's client will find a key or a token, in the places where `wandb login` and jobs leave them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return file.is_file() and netrc.netrc(file).authenticators(host) is not None
