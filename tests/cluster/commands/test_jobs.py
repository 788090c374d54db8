"""Submitting to a cluster: what is refused before anything is sent; signals that arrive twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cli
from cluster.actors.start import surrounding_cluster
from cluster.monitoring.progress import TrainingDisplay
from cluster.training import interruption
from tests.cluster.jobs.servers import JobsApi


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: demo\nmodel:\n  path: m\ndata:\n  train: t.jsonl\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "t.jsonl").write_text("")
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


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsApi]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with JobsApi().running() as running:
        yield running


def submit(run_yaml: Path, api: JobsApi, *more: str) -> list[str]:
    folder = str(run_yaml.parent)
    return ["submit", str(run_yaml), "runs_dir=/r", "--working-dir", folder, "--address", api.address, *more]


def test_what_is_submitted(run_yaml: Path, api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(submit(run_yaml, api, "steps=3", "--job-id", "mine", "--stop-wait", "60")) == 0
    assert capsys.readouterr().out.startswith("job mine\n")
    (body,) = api.submitted
    assert body["entrypoint"] == "exec python -m cluster.cli train run.yaml runs_dir=/r steps=3"
    assert body["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    from cluster.jobs.upload import measure

    assert api.uploads == [measure(run_yaml.parent).size]


@pytest.mark.parametrize(("end", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("STOPPED", None, 130)])
def test_wait_returns_the_code_of_the_job(
    run_yaml: Path, api: JobsApi, capsys: pytest.CaptureFixture[str], end: str, code: int | None, expected: int
) -> None:
    api.log, api.faults = "a line\n", [502]
    api.add("made", "RUNNING", end, code=code)
    assert cli.main(submit(run_yaml, api, "--wait")) == expected
    assert capsys.readouterr().out == "job made\na line\n"


def test_the_death_of_the_head_is_a_message_and_code_1(
    run_yaml: Path, api: JobsApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.jobs import client

    monkeypatch.setattr(client, "LIMITS", client.Limits(away=0.1, retry=0.01))
    api.log, api.faults = "a line\n", [0] * 10_000
    assert cli.main(submit(run_yaml, api, "--wait")) == 1
    out, err = capsys.readouterr()
    assert out == "job made\na line\n" and "Traceback" not in err
    assert "Job made goes on if only the way to its head is broken, and is over if the head is" in err


def test_a_job_id_is_used_once(run_yaml: Path, api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("second", "SUCCEEDED")
    message = error(capsys, *submit(run_yaml, api, "--job-id", "second"))
    assert "--job-id second: this cluster has had a job of that id (SUCCEEDED)" in message
    assert api.uploads == [] and api.submitted == []
    api.add("third", "HIDDEN")  # taken between the question and the submission
    message = error(capsys, *submit(run_yaml, api, "--job-id", "third"))
    assert "Job with submission_id third already exists. Please use a different submission_id." in message
    assert "Traceback" not in message and "File" not in message
    for name in ("a/b", "../x", "", "a b"):
        assert "make the id of a job" in error(capsys, *submit(run_yaml, api, "--job-id", name))


def test_what_does_not_travel_is_refused(
    run_yaml: Path, api: JobsApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_yaml.parent
    (folder / ".gitignore").write_text("*.jsonl\n/base.yaml\nmine.py\nnotes\n")
    (folder / "base.yaml").write_text("data: {valid: /shared/v.jsonl, test: ../t.jsonl}\n")
    (folder / "mine.py").write_text("def reward(group):\n    return []\n")
    (folder / "grpo").mkdir()  # no path, though it is the value of a key
    text = run_yaml.read_text() + "defaults: base.yaml\nrewards:\n  items:\n    - name: mine:reward\n"
    run_yaml.write_text(text)
    monkeypatch.chdir(folder)
    message = error(capsys, *submit(run_yaml, api, "model.path=absent"))
    lines = message.splitlines()
    assert lines[0].endswith("the job would not find:") and len(lines) == 7
    assert f"{folder}/base.yaml: a pattern of .gitignore" in lines[1]
    assert "model.path: absent: is not in" in lines[2]
    assert "data.train: t.jsonl: a pattern of .gitignore or .rayignore" in lines[3]
    assert "data.test: ../t.jsonl: lies outside" in lines[4]
    assert "rewards.items: mine:reward: mine.py: a pattern" in lines[5]
    run_yaml.rename(folder / "notes")
    assert f"{folder}/notes: a pattern of .gitignore" in error(capsys, *submit(folder / "notes", api, "name=x"))
    assert api.uploads == [] and api.submitted == []


@pytest.mark.parametrize("name", ["cluster.py", "cluster/__init__.py"])
def test_what_would_run_in_our_place_is_refused(
    run_yaml: Path, api: JobsApi, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = run_yaml.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    assert f"{name} would run in the place of speechrl's own" in error(capsys, *submit(run_yaml, api))
    (run_yaml.parent / "cluster").mkdir(exist_ok=True)
    (run_yaml.parent / "cluster" / "cli.py").write_text("")  # our own, which may travel
    assert cli.main(submit(run_yaml, api)) == 0


def test_an_upload_that_is_too_large_is_not_begun(
    run_yaml: Path, api: JobsApi, capsys: pytest.CaptureFixture[str]
) -> None:
    with (run_yaml.parent / "weights.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    message = error(capsys, *submit(run_yaml, api))
    assert "101.0 MiB" in message and "takes 100.0 MiB at most" in message and "weights.bin" in message
    assert api.uploads == [] and api.submitted == []


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
def test_stop_goes_by_the_state_that_the_run_announces(api: JobsApi, log: str, end: str, saved: bool) -> None:
    api.log = log
    api.add("j", "RUNNING", "RUNNING", end)
    assert cli.main(["stop", "j", "--address", api.address]) == (0 if saved else 1)
