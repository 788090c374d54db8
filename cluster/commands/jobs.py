"""`speechrl submit`, `jobs` and `stop`: training runs as jobs of a Ray cluster, through its Jobs API.

Ray is imported by the functions that need it, so that `speechrl --help` stays instant.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cluster.config import load_config
from cluster.runs.job_state import announced
from speech.errors import UserError

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

EXCLUDED = (".venv", ".git", "/runs", "/build", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
"""What of the working folder does not travel (patterns of .gitignore, besides the folder's own .gitignore)."""

STOP_WAIT_S = 900
"""Between Ray's SIGTERM and its SIGKILL; Ray's own 3 s would not let a step end and a checkpoint be written."""

_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


def add_arguments(
    submit: argparse.ArgumentParser, jobs: argparse.ArgumentParser, stop: argparse.ArgumentParser
) -> None:
    """Declare the arguments of the three commands, but for CONFIG and its overrides."""
    for parser in (submit, jobs, stop):
        parser.add_argument(
            "--address",
            metavar="URL",
            help="Jobs server, http://HEAD:8265; without it RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine",
        )
    submit.add_argument("--wait", action="store_true", help="show the job's log and return its exit code")
    submit.add_argument(
        "--working-dir", default=".", metavar="DIR", help="folder that travels with the job: code, configs, small data"
    )
    submit.add_argument(
        "--no-upload", action="store_true", help="nothing travels: nodes have speechrl and CONFIG in their image"
    )
    submit.add_argument("--job-id", metavar="ID", help="name of the job; Ray makes one otherwise")
    submit.add_argument("--python", default="python", metavar="PATH", help="interpreter on the head (default: python)")
    submit.add_argument(
        "--stop-wait",
        type=int,
        default=STOP_WAIT_S,
        metavar="S",
        help=f"seconds that a stopped job has for its checkpoint (default {STOP_WAIT_S})",
    )
    stop.add_argument("job", metavar="JOB", nargs="?", help="id of the job, as `speechrl jobs` shows it")
    stop.add_argument("--all", action="store_true", help="all jobs that are not over, e.g. before a node is drained")


def run_submit(args: argparse.Namespace) -> int:
    """Submit `args.config` as a job.

    Returns:
        0 once submitted; with `--wait` the exit code of the job (130 when it was stopped, 1 when it has none).

    Raises:
        UserError: a configuration that could not run there, or no server, or one that refuses.
    """
    folder = Path(args.working_dir)
    if args.no_upload:
        config = args.config
    else:
        config = _inside(Path(args.config), folder)
        _check(args.config, args.overrides)
    # `exec`: the shell that Ray starts becomes the run, so that nothing stands between Ray's SIGTERM and it.
    entrypoint = f"exec {shlex.join([args.python, '-m', 'cluster.cli', 'train', config, *args.overrides])}"
    runtime_env: dict[str, object] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(args.stop_wait)}}
    if not args.no_upload:
        runtime_env |= {"working_dir": str(folder.resolve()), "excludes": list(EXCLUDED)}
    with _server(args.address) as client:
        try:
            job = client.submit_job(
                entrypoint=entrypoint,
                runtime_env=runtime_env,
                submission_id=args.job_id,
                metadata={"speechrl": "train", "config": str(args.config)},
            )
        except ValueError as error:  # a working folder that is too large, for one
            raise UserError(f"the job cannot be submitted: {error}") from error
        sys.stdout.write(f"job {job}\n")
        if not args.wait:
            sys.stdout.write(f"follow it: ray job logs -f {job}    stop it, with a checkpoint: speechrl stop {job}\n")
            return 0
        try:
            _follow(client, job)
        except KeyboardInterrupt:
            sys.stderr.write(f"\nspeechrl: job {job} goes on; stop it with `speechrl stop {job}`\n")
            raise
        return _exit_code(client.get_job_info(job))


def run_jobs(args: argparse.Namespace) -> int:
    """Print the cluster's submitted jobs, the newest last; always 0.

    Raises:
        UserError: no server, or one that refuses.
    """
    with _server(args.address) as client:
        found = [job for job in client.list_jobs() if job.submission_id]
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "exit", "started (UTC)", "seconds", "command"):
        table.add_column(column, overflow="fold")
    for job in sorted(found, key=lambda job: job.start_time or 0):
        table.add_row(str(job.submission_id), _status(job), _shown(job.driver_exit_code), *_times(job), job.entrypoint)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    return 0


def run_stop(args: argparse.Namespace) -> int:
    """Ask a job, or all, to stop after its step with a checkpoint, and wait until it has ended.

    Returns:
        0 when the run's own state says that its last step is saved, or when it had ended already; 1 otherwise.

    Raises:
        UserError: no such job, no server, or one that refuses.
    """
    if (args.job is None) != args.all:
        raise UserError("name one job, or --all")
    with _server(args.address) as client:
        if args.all:
            found = [job for job in client.list_jobs() if job.submission_id and _status(job) not in _TERMINAL]
        else:
            found = [_info(client, args.job)]
        names = [str(job.submission_id) for job in found]
        for name, job in zip(names, found, strict=True):
            if _status(job) not in _TERMINAL:
                client.stop_job(name)
                sys.stdout.write(f"job {name}: asked to stop after its step …\n")
        ended = [_ended(client, name, job) for name, job in zip(names, found, strict=True)]
    return 0 if all(ended) else 1


def _ended(client: JobSubmissionClient, name: str, job: JobDetails) -> bool:
    """Wait for a job's end and say how it ended; False when that cost steps."""
    if _status(job) in _TERMINAL:
        sys.stdout.write(f"job {name} had ended already: {_status(job)}\n")
        return True
    while _status(job) not in _TERMINAL:
        time.sleep(0.5)
        job = client.get_job_info(name)
    status, state = _status(job), announced(client.get_job_logs(name))
    if status == "SUCCEEDED" or (state is not None and state.saved):
        at = "" if state is None or state.checkpoint is None else f" of step {state.checkpoint}"
        sys.stdout.write(f"job {name}: {status}, and its checkpoint{at} is saved\n")
        return True
    sys.stdout.write(
        f"job {name}: {status} without a new checkpoint: it had not begun to train, or "
        f"RAY_JOB_STOP_WAIT_TIME_S was over; the last periodic checkpoint, if any, is valid\n"
    )
    return False


def _check(config: str, overrides: Sequence[str]) -> None:
    """Find here, not minutes later on the cluster, what is wrong with a configuration.

    Raises:
        UserError: what `load_config` raises, or results that would vanish with the job.
    """
    loaded = load_config(config, overrides)
    if not Path(loaded.runs_dir).is_absolute():
        raise UserError(
            f"runs_dir: {loaded.runs_dir!r} would lie in the job's temporary folder; name a folder that all nodes "
            f"share, e.g. runs_dir=/shared/runs"
        )


def _inside(config: Path, folder: Path) -> str:
    """`config` relative to the folder that travels.

    Raises:
        UserError: it lies outside, or the folder is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (--working-dir)")
    try:
        return config.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"{config}: lies outside {folder.resolve()}, which travels with the job; move it there, name another "
            f"--working-dir, or use --no-upload when the nodes have it"
        ) from None


@contextmanager
def _server(address: str | None) -> Iterator[JobSubmissionClient]:
    """A client of the Jobs server; what goes wrong with it inside the block comes out as a message.

    Raises:
        UserError: no server answers, it wants another token, or it refuses a request.
    """
    if address is not None:
        if not address.startswith(("http://", "https://")):
            raise UserError(f"--address {address}: the Jobs server's address has the form http://HEAD:8265")
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers the environment to what it is told
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    shown = address or next(
        (os.environ[k] for k in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if k in os.environ), "http://127.0.0.1:8265"
    )
    try:
        yield JobSubmissionClient(shown)
    except AuthenticationError as error:
        raise UserError(
            f"{shown}: the cluster refuses the token ({str(error).splitlines()[0]}); set RAY_AUTH_MODE=token and the "
            f"cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH (docs/operations.md)"
        ) from error
    except ConnectionError as error:
        raise UserError(f"{shown}: no Ray Jobs server answers there: {error}") from error
    except RuntimeError as error:
        raise UserError(f"{shown}: {_first_lines(str(error))}") from error


def _info(client: JobSubmissionClient, job: str) -> JobDetails:
    """Raises UserError when there is no such job."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise UserError(f"there is no job {job!r}; `speechrl jobs` lists them") from error
        raise


def _follow(client: JobSubmissionClient, job: str) -> None:
    """Print a job's log until it has ended. A connection that breaks is made anew, without printing anything twice."""
    printed = 0
    while True:
        try:
            printed = asyncio.run(_tail(client, job, printed))
        except _BrokenTailError as error:
            printed = error.printed
        if _status(client.get_job_info(job)) in _TERMINAL:
            rest = client.get_job_logs(job)[printed:]
            sys.stdout.write(rest)
            sys.stdout.flush()
            return
        time.sleep(1)


class _BrokenTailError(Exception):
    """The log's connection broke after so many characters."""

    def __init__(self, printed: int) -> None:
        super().__init__(printed)
        self.printed = printed


async def _tail(client: JobSubmissionClient, job: str, printed: int) -> int:
    """Print what follows the first `printed` characters; returns how many there are then."""
    import aiohttp

    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            new = text[max(0, printed - seen) :]
            seen += len(text)
            sys.stdout.write(new)
            sys.stdout.flush()
    except (RuntimeError, aiohttp.ClientError) as error:
        raise _BrokenTailError(max(printed, seen)) from error
    return max(printed, seen)


def _exit_code(job: JobDetails) -> int:
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code)
    if _status(job) != "STOPPED":
        sys.stderr.write(f"speechrl: job {job.submission_id}: {_status(job)}: {_first_lines(job.message or '')}\n")
    return {"SUCCEEDED": 0, "STOPPED": 130}.get(_status(job), 1)


def _status(job: JobDetails) -> str:
    return str(getattr(job.status, "value", job.status))


def _times(job: JobDetails) -> tuple[str, str]:
    if not job.start_time:
        return "", ""
    started = datetime.fromtimestamp(job.start_time / 1000, UTC)
    end = job.end_time / 1000 if job.end_time else time.time()
    return f"{started:%Y-%m-%d %H:%M:%S}", f"{end - job.start_time / 1000:.0f}"


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _first_lines(text: str, count: int = 3) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[:count])
