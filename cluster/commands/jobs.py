"""`speechrl submit`, `jobs` and `stop`: training runs as jobs of a Ray cluster, through its Jobs API.

Ray is imported by the functions that need it, so that `speechrl --help` stays instant.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cluster.jobs.checks import check_travels, inside, load_for_job
from cluster.runs.job_state import announced
from speech.errors import UserError

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

    from cluster.jobs.client import JobsClient

STOP_WAIT_S = 900
"""Between Ray's SIGTERM and its SIGKILL; Ray's own 3 s would not let a step end and a checkpoint be written."""

_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"

_STOP_MARGIN_S = 120
"""How much longer than the job's stop time `stop` waits: for Ray's SIGKILL and its own tables."""


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
    submit.add_argument("--job-id", metavar="ID", help="name of the job, used once; Ray makes one otherwise")
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
        0 once submitted; with `--wait` the exit code of the job (130 when it was stopped, 1 when it has none, or its
        server is away for too long to know).

    Raises:
        UserError: a configuration that could not run there, or no server, or one that refuses.
    """
    if args.job_id is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", args.job_id):
        raise UserError(f"--job-id {args.job_id!r}: letters, digits, `.`, `_` and `-` make the id of a job")
    folder = Path(args.working_dir)
    config = args.config if args.no_upload else inside(Path(args.config), folder)
    # `exec`: the shell that Ray starts becomes the run, so that nothing stands between Ray's SIGTERM and it.
    entrypoint = f"exec {shlex.join([args.python, '-m', 'cluster.cli', 'train', config, *args.overrides])}"
    runtime_env: dict[str, object] = {"env_vars": {_STOP_VARIABLE: str(args.stop_wait)}}
    if not args.no_upload:
        loaded = load_for_job(args.config, args.overrides)
        from cluster.jobs.upload import EXCLUDED, measure

        upload = measure(folder)
        check_travels(upload, args.config, loaded)
        upload.check_size()
        runtime_env |= {"working_dir": str(upload.folder), "excludes": list(EXCLUDED)}
    from cluster.jobs.client import ServerAwayError, jobs_server

    with jobs_server(args.address) as client:
        job = _submitted(client, args, entrypoint, runtime_env)
        sys.stdout.write(f"job {job}\n")
        if not args.wait:
            sys.stdout.write(f"follow it: ray job logs -f {job}    stop it, with a checkpoint: speechrl stop {job}\n")
            return 0
        from cluster.jobs.following import Follower

        try:
            return _exit_code(Follower(client, job).log())
        except ServerAwayError as error:
            sys.stderr.write(f"speechrl: {error}\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write(f"\nspeechrl: job {job} goes on; stop it with `speechrl stop {job}`\n")
            raise


def run_jobs(args: argparse.Namespace) -> int:
    """Print the cluster's submitted jobs, the newest last; always 0.

    Raises:
        UserError: no server, or one that refuses.
    """
    from cluster.jobs.client import jobs_server
    from cluster.jobs.following import status_of

    with jobs_server(args.address) as client:
        found = [job for job in client.list_jobs() if job.submission_id]
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "exit", "started (UTC)", "seconds", "command"):
        table.add_column(column, overflow="fold")
    for job in sorted(found, key=lambda job: job.start_time or 0):
        code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
        table.add_row(str(job.submission_id), status_of(job), code, *_times(job), job.entrypoint)
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
    from cluster.jobs.client import jobs_server
    from cluster.jobs.following import has_ended

    with jobs_server(args.address) as client:
        if args.all:
            found = [job for job in client.list_jobs() if job.submission_id and not has_ended(job)]
        else:
            job = _known(client, args.job)
            if job is None:
                raise UserError(f"there is no job {args.job!r}; `speechrl jobs` lists them")
            found = [job]
        for job in found:
            if not has_ended(job):
                client.stop_job(str(job.submission_id))
                sys.stdout.write(f"job {job.submission_id}: asked to stop after its step …\n")
        ended = [_ended(client, job) for job in found]
    return 0 if all(ended) else 1


def _submitted(client: JobsClient, args: argparse.Namespace, entrypoint: str, runtime_env: dict[str, object]) -> str:
    """Submit; returns the job's id.

    Raises:
        UserError: the id is taken, a file cannot be read any more, or the server refuses.
    """
    if args.job_id is not None and (taken := _known(client, args.job_id)) is not None:
        from cluster.jobs.following import status_of

        raise UserError(
            f"--job-id {args.job_id}: this cluster has had a job of that id ({status_of(taken)}), and an id is used "
            f"once; choose another one, or none (the run resumes by its name, whatever the job is called)"
        )
    try:
        return client.submit_job(
            entrypoint=entrypoint,
            runtime_env=runtime_env,
            submission_id=args.job_id,
            metadata={"speechrl": "train", "config": str(args.config)},
        )
    except (OSError, ValueError) as error:
        raise UserError(f"the job cannot be submitted: {error}") from error


def _ended(client: JobsClient, job: JobDetails) -> bool:
    """Wait for a job's end and say how it ended; False when that cost steps."""
    from cluster.jobs.following import Follower, has_ended, status_of

    name = str(job.submission_id)
    if has_ended(job):
        sys.stdout.write(f"job {name} had ended already: {status_of(job)}\n")
        return True
    stop_wait = str((job.runtime_env or {}).get("env_vars", {}).get(_STOP_VARIABLE, ""))
    seconds = int(stop_wait) if stop_wait.isdecimal() else STOP_WAIT_S  # Ray may show no more than that there is one
    job = Follower(client, name).end(seconds + _STOP_MARGIN_S)
    status, state = status_of(job), announced(client.get_job_logs(name))
    if status == "SUCCEEDED" or (state is not None and state.saved):
        at = "" if state is None or state.checkpoint is None else f" of step {state.checkpoint}"
        sys.stdout.write(f"job {name}: {status}, and its checkpoint{at} is saved\n")
        return True
    sys.stdout.write(
        f"job {name}: {status} without a new checkpoint: it had not begun to train, or "
        f"{_STOP_VARIABLE} was over; the last periodic checkpoint, if any, is valid\n"
    )
    return False


def _known(client: JobsClient, job: str) -> JobDetails | None:
    """What the server says of a job; None when there is none of that id."""
    from cluster.jobs.client import RefusedRequestError

    try:
        return client.get_job_info(job)
    except RefusedRequestError as error:
        if error.status == 404:
            return None
        raise


def _exit_code(job: JobDetails) -> int:
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code)
    from cluster.jobs.client import cause
    from cluster.jobs.following import status_of

    if status_of(job) != "STOPPED":
        sys.stderr.write(f"speechrl: job {job.submission_id}: {status_of(job)}: {cause(job.message or '')}\n")
    return {"SUCCEEDED": 0, "STOPPED": 130}.get(status_of(job), 1)


def _times(job: JobDetails) -> tuple[str, str]:
    if not job.start_time:
        return "", ""
    started = datetime.fromtimestamp(job.start_time / 1000, UTC)
    end = job.end_time / 1000 if job.end_time else time.time()
    return f"{started:%Y-%m-%d %H:%M:%S}", f"{end - job.start_time / 1000:.0f}"
