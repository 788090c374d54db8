"""The page of a run that goes on: this machine alone, news when files change, a clean end."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cli
from cluster.runs import durable
from speech.errors import UserError
from tests.cluster.report.conftest import WriteRun

ROOT = Path(__file__).parents[3]


@pytest.fixture
def served(write_run: WriteRun) -> Iterator[tuple[Path, int, subprocess.Popen[str]]]:
    """A run that has not ended, the port of its page, and the process of the command."""
    path = write_run(status=None)
    command = [sys.executable, "-m", "cluster.cli", "report", "--live", str(path), "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a script, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    match = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert match, process.communicate()
    yield path, int(match[1]), process
    process.kill()
    process.wait()


def ask(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def steps_of(page: str) -> list[int]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    found: list[int] = json.loads(text)["curves"]["runs"][0]["steps"]
    return found


def test_a_run_is_followed_until_ctrl_c(served: tuple[Path, int, subprocess.Popen[str]]) -> None:
    path, port, process = served
    status, page = ask(port, "/")
    assert status == 200 and steps_of(page) == [1, 2, 3] and "connect-src &#39;self&#39;" in page
    state = ask(port, "/state")[1]
    assert state in page and ask(port, "/state")[1] == state
    durable.append(path / "metrics.jsonl", [{"step": 4, "reward/mean": 0.5}])
    assert ask(port, "/state")[1] != state
    news = ask(port, "/news")[1]
    assert steps_of(news) == [1, 2, 3, 4] and "Plotly" not in news

    assert ask(port, "/", host="evil.example")[0] == 403
    assert ask(port, "/../etc/passwd")[0] == 404
    with (path / "metrics.jsonl").open("a") as file:
        file.write("{broken\n{}\n")
    status, said = ask(port, "/news")
    assert status == 503 and "metrics.jsonl:5" in said

    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and error == "", (out, error)


def test_a_port_that_is_taken(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert cli.main(["report", "--live", str(write_run()), "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another with --port" in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    from cluster.report.live import LiveReport

    with pytest.raises(UserError, match="is no run"):
        LiveReport([tmp_path])
