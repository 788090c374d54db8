"""A Ray head of one's own, with its Jobs server, for tests: own ports, own session folder, own token."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """
    Attributes:
        address: of the Jobs server.
        metrics_port: of the agent that Prometheus reads.
        environment: of clients that hold the token.
    """

    address: str
    metrics_port: int
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


@contextmanager
def ray_head(token: str, cpus: int = 4) -> Iterator[Head]:
    """Start `ray start --head --block` and end it, and it alone, afterwards."""
    gcs, dashboard, agent_grpc, agent_http, runtime_env, metrics, client = free_ports(7)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # `python` in a job is this interpreter
        "OMP_NUM_THREADS": "1",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    environment.pop("PYTHONPATH", None)  # the code must come with the job
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as session:
        log = Path(session) / "head.log"
        with log.open("w") as out:
            head = subprocess.Popen(
                [
                    *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
                    *("--node-ip-address", "127.0.0.1", "--port", str(gcs), "--num-cpus", str(cpus)),
                    *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
                    *("--dashboard-agent-grpc-port", str(agent_grpc), "--dashboard-agent-listen-port", str(agent_http)),
                    *("--runtime-env-agent-port", str(runtime_env), "--metrics-export-port", str(metrics)),
                    *("--ray-client-server-port", str(client), "--object-store-memory", str(200 * 2**20)),
                    *("--temp-dir", f"{session}/t"),
                ],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_for(f"{address}/api/version", token, head, log)
            yield Head(address, metrics, environment)
        finally:
            head.terminate()
            with suppress(subprocess.TimeoutExpired):
                head.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)  # what of its own session is left
            head.wait()


def _wait_for(url: str, token: str, head: subprocess.Popen[bytes], log: Path, timeout: float = 180) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise AssertionError(f"ray start ended:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no Jobs server within {timeout} s:\n{log.read_text()}")
