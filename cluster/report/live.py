"""The page of a run that goes on, served to this machine alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cluster.report.page import render
from cluster.report.runs import read_runs
from speech.errors import UserError

HOST = "127.0.0.1"
_WATCHED = ("config.yaml", "metrics.jsonl", "summary.json", "evaluation-before.json", "evaluation-after.json")


class LiveReport:
    """Pages of runs, made anew when their files have changed and somebody asks."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        """
        Raises:
            UserError: a folder is no run's, or a package is missing.
        """
        self._paths = [Path(path) for path in paths]
        self._lock = threading.Lock()
        self._made: dict[bool, tuple[str, str]] = {}
        self.page(bare=False)

    def state(self) -> str:
        """A text that changes when a file does from which the page is made."""
        stamps = []
        for file in (path / name for path in self._paths for name in _WATCHED):
            try:
                found = file.stat()
                stamps.append(f"{file} {found.st_size} {found.st_mtime_ns}")
            except FileNotFoundError:
                continue
        return hashlib.sha256("\n".join(stamps).encode()).hexdigest()

    def page(self, bare: bool) -> str:
        """The page as it is now; `bare` as in `render`.

        Raises:
            UserError: a file is damaged.
        """
        with self._lock:  # two that ask at once need one page
            state = self.state()  # before reading: what changes meanwhile is news for the next question
            if bare not in self._made or self._made[bare][0] != state:
                self._made[bare] = state, render(read_runs(self._paths), state, bare)
            return self._made[bare][1]


def serve(paths: Sequence[str | Path], port: int, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        port: 0 takes a free one.
        started: gets the address.

    Raises:
        UserError: a folder is no run's, a package is missing, or the port is taken.
    """
    report = LiveReport(paths)
    try:
        server = ThreadingHTTPServer((HOST, port), _handler(report))
    except OSError as error:
        raise UserError(
            f"port {port}: {error.strerror or error}; choose another with --port, 0 takes a free one"
        ) from error
    with server:
        started(f"http://{HOST}:{server.server_port}")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return


def _handler(report: LiveReport) -> type[BaseHTTPRequestHandler]:
    answers: dict[str, tuple[str, Callable[[], str]]] = {
        "/": ("text/html", lambda: report.page(bare=False)),
        "/news": ("text/html", lambda: report.page(bare=True)),
        "/state": ("text/plain", report.state),
    }

    class Handler(BaseHTTPRequestHandler):
        """Answers questions of this machine's browsers."""

        def do_GET(self) -> None:
            """Send a page, or the state of the files."""
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):  # a foreign page whose name leads here must not read transcripts
                self._send(HTTPStatus.FORBIDDEN, "text/plain", "ask for 127.0.0.1")
            elif self.path not in answers:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", "nothing here")
            else:
                kind, make = answers[self.path]
                try:
                    self._send(HTTPStatus.OK, kind, make())
                except UserError as error:
                    self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))

        def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            try:
                self.wfile.write(content)
            except ConnectionError:
                self.close_connection = True  # the browser went away

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a page asks every few seconds."""

    return Handler
