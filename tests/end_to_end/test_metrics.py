"""What a run gives to Prometheus, through a real Ray head: read by `speechrl top`, and by a real Prometheus."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cluster.cli import main
from tests.cluster.monitoring.test_prometheus import STEP
from tests.end_to_end.ray_head import ROOT, Head, free_ports, ray_head

pytestmark = pytest.mark.slow

DRIVER = """
import json, sys, time
import ray
from cluster.monitoring.prometheus import PREFIX, Exporter, Series
ray.init(address=sys.argv[1], log_to_driver=False)
exporter, metrics = Exporter("demo"), json.loads(sys.argv[2])
exporter.begin()
exporter.gauge(Series(f"{PREFIX}stalled", 0.0))  # as a run does when it begins
for step in range(1, 10_000):
    exporter.step(step, metrics | {"reward/mean": step / 10, "reward/invalid": 1.0})
    time.sleep(12)  # longer than Ray takes from one export to the next, which forgets gauges
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head on which a run named `demo` exports a step every twelve seconds."""
    with ray_head(None) as started:
        arguments = [sys.executable, "-c", DRIVER, started.gcs, json.dumps(STEP)]
        driver = subprocess.Popen(arguments, cwd=ROOT, env=started.environment | {"PYTHONPATH": str(ROOT)})
        try:
            metrics = f"http://127.0.0.1:{started.metrics_port}/metrics"
            wait(lambda: "ray_speechrl_step" in requests.get(metrics).text, "the driver's first step")
            yield started
        finally:
            driver.kill()
            driver.wait()


def wait(found: Any, what: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"nothing came: {what}"
        time.sleep(0.5)
    return value


def test_top_finds_the_run_of_a_cluster(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--address", head.address, "--once"]) == 0
    said = capsys.readouterr().out
    for expected in ("demo", "step ", "reward", "accuracy", "25.0%", "4.0 s a step"):
        assert expected in said, said


def test_top_names_the_runs_that_are_there(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--address", head.address, "--run-name", "other", "--once"]) == 2
    assert "those that have are demo" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus is not installed")
def test_every_panel_of_the_board_shows_something(head: Head, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "ray",
                "http_sd_configs": [{"url": f"{head.address}/api/prometheus/sd", "refresh_interval": "5s"}],
            }
        ],
    }
    file = tmp_path / "prometheus.yml"
    file.write_text(json.dumps(config))
    options = [
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    server = subprocess.Popen(["prometheus", *options, "--log.level=error"])
    try:
        board = json.loads((ROOT / "deploy/grafana/speechrl.json").read_text(encoding="utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$run", "demo")
                wait(lambda query=query: answers(port, query), query)
    finally:
        server.terminate()
        server.wait()


def answers(port: int, query: str) -> bool:
    """Whether there is a number; a rate has none before the second step."""
    try:
        answer = requests.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=10).json()
    except requests.ConnectionError:  # it starts
        return False
    assert answer["status"] == "success", (query, answer)
    values = [float(series["value"][1]) for series in answer["data"]["result"]]
    return bool(values) and all(map(math.isfinite, values))
