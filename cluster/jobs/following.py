"""Following a job to its end while its server comes and goes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import aiohttp

from cluster.jobs.client import JobsClient, RefusedRequestError, ServerAwayError
from speech.errors import UserError

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


def status_of(job: JobDetails) -> str:
    """Ray's word for it, such as `RUNNING`."""
    return str(getattr(job.status, "value", job.status))


def has_ended(job: JobDetails) -> bool:
    return status_of(job) in _TERMINAL


class Follower:
    """One job that is waited for.

    Args:
        client: of its server.
        name: the job's id.
    """

    def __init__(self, client: JobsClient, name: str) -> None:
        self._client, self._name, self._limits = client, name, client.limits
        self._printed = 0
        self._away_since: float | None = None

    def log(self) -> JobDetails:
        """Print the job's log until it has ended; nothing is printed twice, however often the connection breaks.

        Returns:
            The ended job.

        Raises:
            ServerAwayError: its server was away for longer than the limit.
            UserError: its server knows it no more.
        """
        while True:
            pause = self._limits.retry
            try:
                heard = asyncio.run(self._tail())
                job = self._asked()
                if has_ended(job) or not heard:
                    self._print(self._client.get_job_logs(self._name)[self._printed :])
                if has_ended(job):
                    return job
                self._back()
                if not heard:  # a proxy before the server may not pass WebSockets on; the whole log comes each time
                    pause = self._limits.quiet
            except ServerAwayError as error:
                self._bear(error)
            time.sleep(pause)

    def end(self, seconds: float) -> JobDetails:
        """Wait for the job's end without a word, `seconds` at most.

        Raises:
            ServerAwayError, UserError: as `log`.
            UserError: it has not ended in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                job = self._asked()
                if has_ended(job):
                    return job
                self._back()
            except ServerAwayError as error:
                self._bear(error)
            time.sleep(self._limits.retry / 2)
        raise UserError(f"job {self._name}: asked to stop {seconds:.0f} s ago, it has not ended")

    def _asked(self) -> JobDetails:
        try:
            return self._client.get_job_info(self._name)
        except RefusedRequestError as error:
            if error.status != 404:
                raise
            raise UserError(
                f"the Jobs server knows no job {self._name} any more: another head has taken the old one's place; "
                f"submit the same configuration again, and it resumes"
            ) from error

    def _back(self) -> None:
        if self._away_since is not None:
            sys.stderr.write("speechrl: the Jobs server answers again\n")
            self._away_since = None

    def _bear(self, error: ServerAwayError) -> None:
        """
        Raises:
            ServerAwayError: the server was away for too long.
        """
        limit, now = self._limits.away, time.monotonic()
        if self._away_since is None:
            self._away_since = now
            sys.stderr.write(f"speechrl: {error}; asking again for {limit:.0f} s\n")
        elif now - self._away_since > limit:
            raise ServerAwayError(
                f"{error}\nThat was so for {limit:.0f} s. Job {self._name} goes on if only the way to its head is "
                f"broken, and is over if the head is: then submit the same configuration again, and it resumes"
            ) from error

    async def _tail(self) -> bool:
        """Print what is new in the log until its end, or until the connection breaks.

        Returns:
            False when the connection broke before anything came.

        Raises:
            ServerAwayError: nothing came for a while, and the server does not answer.
            UserError: as `log`.
        """
        seen = 0
        lines = self._client.tail_job_logs(self._name)
        while True:
            line = asyncio.ensure_future(_next(lines))
            # A head whose machine vanishes closes no connection.
            while not (await asyncio.wait({line}, timeout=self._limits.quiet))[0]:
                if has_ended(self._asked()):
                    line.cancel()
                    return True
                self._back()
            try:
                text = await line
            except (aiohttp.ClientError, OSError, RuntimeError, TimeoutError):
                return seen > 0  # whether the server is away is asked next
            if text is None:
                return True
            self._print(text[max(0, self._printed - seen) :])
            seen += len(text)

    def _print(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._printed += len(text)


async def _next(lines: AsyncIterator[str]) -> str | None:
    """The next piece of a log; None at its end."""
    return await anext(lines, None)
