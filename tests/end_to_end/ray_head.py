"""A Ray head of one's own, with its Jobs server, for tests: own ports, own session folder, own token."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """
    Attributes:
        address: of the Jobs server.
        gcs: address for `ray.init`, as `host:port`.
        session: id of the session that all its processes belong to.
        metrics_port: of the agent that Prometheus reads.
        environment: of clients, with the token where there is one.
    """

    address: str
    gcs: str
    session: int
    metrics_port: int
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


@contextmanager
def ray_head(
    token: str | None,
    cpus: int = 4,
    environment: Mapping[str, str] = MappingProxyType({}),
    more: Callable[[str, Path], Sequence[str]] = lambda gcs, folder: (),
) -> Iterator[Head]:
    """Start `ray start --head --block` and end it, and it alone, afterwards.

    Args:
        token: that clients must hold; None asks for none.
        environment: of the head and its nodes, besides that of this process.
        more: further arguments, made of the address for `ray.init` and a folder that goes with the head.
    """
    given = dict(environment)
    gcs, dashboard, agent_grpc, agent_http, runtime_env, metrics, client = free_ports(7)
    environment = os.environ | {
        **({"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # `python` in a job is this interpreter
        "OMP_NUM_THREADS": "1",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    environment.pop("PYTHONPATH", None)  # the code must come with the job
    environment |= given
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
                    *more(f"127.0.0.1:{gcs}", Path(session)),
                ],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_for(f"{address}/nodes?view=hostNameList", token, head, log)
            yield Head(address, f"127.0.0.1:{gcs}", head.pid, metrics, environment)
        finally:
            head.terminate()
            with suppress(subprocess.TimeoutExpired):
                head.wait(60)
            for process in of_session(head.pid):  # what is left of it
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()


def of_session(session: int) -> list[psutil.Process]:
    """The living processes of a session (`setsid`), which children belong to whatever becomes of their parents."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _wait_for(url: str, token: str | None, head: subprocess.Popen[bytes], log: Path, timeout: float = 180) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, headers=headers)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise AssertionError(f"ray start ended:\n{log.read_text()}")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if json.load(answer)["data"]["hostNameList"]:  # its own node may come later than its server
                return
        time.sleep(0.5)
    raise AssertionError(f"no node of a Jobs server within {timeout} s:\n{log.read_text()}")
