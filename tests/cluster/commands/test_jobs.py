"""Submitting to a cluster: what is refused before anything is sent; signals that arrive twice."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import cli
from cluster.actors.start import surrounding_cluster
from cluster.commands import jobs
from cluster.monitoring.progress import TrainingDisplay
from cluster.training import interruption


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: demo\nmodel:\n  path: m\ndata:\n  train: t.jsonl\n")
    return path


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    return capsys.readouterr().err


def test_refused_before_anything_is_sent(
    run_yaml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # restored afterwards
    travels = ("--working-dir", str(tmp_path))
    assert "runs_dir: 'runs' would lie in" in error(capsys, "submit", str(run_yaml), *travels)
    assert "did you mean `steps`" in error(capsys, "submit", str(run_yaml), "setps=3", *travels)
    (tmp_path / "other").mkdir()
    assert "lies outside" in error(capsys, "submit", str(run_yaml), "--working-dir", str(tmp_path / "other"))
    assert "no such folder" in error(capsys, "submit", str(run_yaml), "--working-dir", str(tmp_path / "absent"))
    assert "has the form http://" in error(capsys, "jobs", "--address", "head:6379")
    assert "name one job, or --all" in error(capsys, "stop")
    for arguments in (["submit", str(run_yaml), "runs_dir=/r", *travels], ["jobs"], ["stop", "raysubmit_x"]):
        message = error(capsys, *arguments, "--address", "http://127.0.0.1:1")
        assert "http://127.0.0.1:1: no Ray Jobs server answers there" in message


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (None, None),
        ("", None),
        ("http://head:8265", None),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        ("ray://h:1", "ray://h:1"),
    ],
)
def test_surrounding_cluster(address: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert surrounding_cluster() == expected


def test_one_request_may_arrive_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    with interruption.interruption(TrainingDisplay("x", 1)) as asked:
        assert not asked
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # Ray's, a wrapper's, and an echo
            os.kill(os.getpid(), number)
        assert asked == [True]
        now[0] += 60
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_travels(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    project = tmp_path / "project"
    (tmp_path / "environment" / "lib").mkdir(parents=True)
    (tmp_path / "environment" / "lib" / "torch.so").write_text("large")
    for name in ("cluster/cli.py", "configs/run.yaml", "assets/build/speech.py", "runs/a/metrics.jsonl"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    for name in (".git/HEAD", "build/x.o", "cluster/__pycache__/cli.pyc", ".mypy_cache/y", "speechrl.egg-info/PKG"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / ".venv").symlink_to(tmp_path / "environment")
    found: list[str] = []
    excludes = _get_excludes(project, list(jobs.EXCLUDED))
    _dir_travel(project, [excludes], lambda p: found.append(p.relative_to(project).as_posix()), True)
    files = sorted(name for name in found if (project / name).is_file())
    assert files == ["assets/build/speech.py", "cluster/cli.py", "configs/run.yaml"]


class SimulatedJobs:
    """A Jobs server whose job goes through states, one at each question."""

    def __init__(self, log: str, *states: str) -> None:
        self.log, self.states = log, list(states)

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(status=self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def get_job_logs(self, job: str) -> str:
        return self.log


@pytest.mark.parametrize(
    ("log", "end", "saved"),
    [
        ('step 3 …\nspeechrl-state {"step": 3, "checkpoint": 3}\nstopped\n', "STOPPED", True),
        ('speechrl-state {"step": 3, "checkpoint": 2}\n', "STOPPED", False),
        ("stopped after step 3; a checkpoint of it is saved\n", "STOPPED", False),
        ("", "SUCCEEDED", True),
        ("", "FAILED", False),
    ],
)
def test_stop_goes_by_the_state_that_the_run_announces(log: str, end: str, saved: bool) -> None:
    client = SimulatedJobs(log, "RUNNING", end)
    assert jobs._ended(client, "j", client.get_job_info("j")) is saved  # type: ignore[arg-type]


def test_a_log_that_breaks_is_followed_without_printing_anything_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each connection begins at the log's beginning, and the first two break."""

    class Server(SimulatedJobs):
        connections = 0

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            self.connections += 1
            yield "one\n"
            yield "two\n"
            if self.connections < 3:
                raise RuntimeError("the connection broke")
            yield "three\n"

    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    server = Server("one\ntwo\nthree\nfour\n", "RUNNING", "RUNNING", "SUCCEEDED")
    jobs._follow(server, "j")  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n" and server.connections == 3
