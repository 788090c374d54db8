"""Runs as jobs of a real Ray head with token authentication: submitted, stopped with a checkpoint, resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.jobs.client import JobsClient, Limits, ServerAwayError, cause
from cluster.jobs.following import Follower
from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.ray_head import BIN, ROOT, Head, of_session, ray_head
from tests.end_to_end.runs import records, write_config

pytestmark = pytest.mark.slow

TOKEN = "not-so-secret-" + "0" * 40


@dataclass(frozen=True)
class Project:
    """A copy of the project as a user would check it out, with a configuration, beside a cluster."""

    folder: Path
    head: Head

    def command(self, *words: str, expect: int = 0, timeout: float = 400, **environment: str) -> str:
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.head.environment | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == expect, f"{words}: exit code {done.returncode}:\n{done.stdout}"
        return done.stdout

    def speechrl(self, *words: str, expect: int = 0, timeout: float = 400, **environment: str) -> str:
        command = (sys.executable, "-m", "cluster.cli", *words)
        return self.command(*command, expect=expect, timeout=timeout, **environment)

    @property
    def run(self) -> Path:
        return self.folder.parent / "runs" / "tiny"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("jobs")
    copy = folder / "project"
    copy.mkdir()
    for name in ("speech", "rollout", "rewards", "learner", "cluster"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    model = write_demo_checkpoint(folder / "model", scale=1.5)
    config = write_config(folder, model, checkpoint__every=100, evaluation={"before": False, "after": False})
    config.rename(copy / "run.yaml")
    with ray_head(TOKEN) as head:
        yield Project(copy, head)


def wait_for_lines(path: Path, lines: int, project: Project, job: str, timeout: float = 400) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < lines:
        if time.monotonic() > deadline:
            log = project.command(str(BIN / "ray"), "job", "logs", "--address", project.head.address, job)
            raise AssertionError(f"no {lines} lines in {path} within {timeout} s:\n{log}")
        time.sleep(0.2)


def wait_for_metric(url: str, name: str, timeout: float = 120) -> str:
    deadline = time.monotonic() + timeout
    text = ""
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        if f"\n{name}{{" in text:
            return text
        time.sleep(1)
    raise AssertionError(f"no {name} at {url}:\n{text[:3000]}")


@pytest.mark.timeout(1200)
def test_stop_saves_and_the_same_run_submitted_again_resumes_it(project: Project) -> None:
    address = project.head.address
    # Plain `ray job submit`, with a wrapper that passes SIGTERM on: the run gets it twice.
    output = project.command(
        *(str(BIN / "ray"), "job", "submit", "--address", address, "--no-wait", "--submission-id", "first"),
        *("--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}})),
        *("--", "timeout", "900", "speechrl", "train", "run.yaml", "steps=400"),
    )
    assert "first" in output
    wait_for_lines(project.run / "metrics.jsonl", 2, project, "first")
    scraped = wait_for_metric(f"http://127.0.0.1:{project.head.metrics_port}/metrics", "ray_speechrl_step")
    assert 'run="tiny"' in scraped and "ray_speechrl_phase_seconds_bucket" in scraped
    assert "ray_speechrl_tokens_total" in scraped and "ray_speechrl_rollout_wer" in scraped
    stopped = project.speechrl("stop", "--all", "--address", address)
    assert "STOPPED, and its checkpoint of step" in stopped
    done = len(records(project.run / "metrics.jsonl"))
    assert 2 <= done < 400 and (project.run / "checkpoints" / f"step-{done:06d}" / "state.json").is_file()
    assert json.loads((project.run / "summary.json").read_text())["status"] == "interrupted"

    # The documented command, from here to the end; but not from a checkpoint that was damaged meanwhile.
    words = ("submit", "run.yaml", f"steps={done + 2}", "--address", address, "--wait")
    shard = next((project.run / "checkpoints" / f"step-{done:06d}" / "dcp").glob("*.distcp"))
    written = shard.read_bytes()
    shard.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    refused = project.speechrl(*words, expect=2)
    assert "no checkpoint of this run can be used" in refused and f"{shard.name} is not what was written" in refused
    shard.write_bytes(written)
    log = project.speechrl(*words, "--job-id", "second")
    assert f"resuming from the checkpoint of step {done}" in log and f"completed after {done + 2} steps" in log
    assert log.count("results in") == 1, "each line of the log once"
    lines = records(project.run / "log.jsonl")
    assert {"run", "step", "version", "actor", "time"} <= lines[0].keys() and lines[-1]["step"] == done + 2
    summary = json.loads((project.run / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["steps"] == done + 2
    assert "exactly once" in project.speechrl("audit", str(project.run))

    listed = project.speechrl("jobs", "--address", address)
    assert "first" in listed and "STOPPED" in listed and "second" in listed and "SUCCEEDED" in listed
    assert "had ended already" in project.speechrl("stop", "second", "--address", address)
    taken = project.speechrl(*words, "--job-id", "second", expect=2)
    assert "this cluster has had a job of that id (SUCCEEDED)" in taken

    # A run that fails says so with its own exit code.
    failed = project.speechrl("submit", "run.yaml", "seed=4", "--address", address, "--wait", expect=2)
    assert "holds a run with another configuration" in failed


def test_refusals_are_messages(project: Project) -> None:
    address = project.head.address
    missing = project.speechrl("stop", "absent", "--address", address, expect=2)
    assert "there is no job 'absent'" in missing
    wrong = project.speechrl("jobs", "--address", address, expect=2, RAY_AUTH_TOKEN="wrong-" + "1" * 40)
    assert "refuses the token" in wrong and "RAY_AUTH_TOKEN" in wrong and "Traceback" not in wrong
    none = project.speechrl("jobs", "--address", address, expect=2, RAY_AUTH_MODE="disabled")
    assert "RAY_AUTH_MODE=token" in none and "Traceback" not in none
    assert os.environ.get("RAY_AUTH_TOKEN") is None
    (project.folder / "ignored").mkdir()
    (project.folder / "ignored" / ".gitignore").write_text("*\n")
    shutil.copy(project.folder / "run.yaml", project.folder / "ignored" / "run.yaml")
    ignored = project.speechrl("submit", "ignored/run.yaml", "--address", address, expect=2)
    assert "ignored/run.yaml: a pattern of .gitignore" in ignored
    # What the check before the submission cannot see: an id that somebody else takes at the same moment.
    body = json.dumps({"entrypoint": "sleep 0", "submission_id": "taken"}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/api/jobs/", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request, timeout=60):
        pass
    assert cause(refused.value.read().decode()).startswith("Job with submission_id taken already exists")


def test_a_log_is_followed_until_its_head_is_dead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_head(None) as head:
        client = JobsClient(head.address, Limits(away=5.0))
        job = client.submit_job(entrypoint="echo begun; sleep 1; echo ended; exit 3")
        ended = Follower(client, job).log()
        log = capsys.readouterr().out.splitlines()
        assert ended.driver_exit_code == 3 and log.count("begun") == log.count("ended") == 1
        job = client.submit_job(entrypoint="echo begun; sleep 600")
        killed: list[bool] = []

        def kill() -> None:
            while "begun" not in client.get_job_logs(job).splitlines():
                time.sleep(0.2)
            for process in of_session(head.session):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            killed.append(True)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ServerAwayError, match=r"Job .* is over if the head is"):
            Follower(client, job).log()
        killer.join()
    assert killed and "asking again for 5 s" in capsys.readouterr().err
