"""Servers on this machine: the real one, and one that answers any bytes."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

from rewards.config import RewardItem, SoundConfig
from rewards.server import RemoteScorer, RewardServer


@contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        with server:
            yield
            server.shutdown()
    finally:
        thread.join(10)


@contextmanager
def serving(name: str, sound: SoundConfig | None = None, **options: Any) -> Iterator[str]:
    """The url of the real server of a reward."""
    server = RewardServer(("127.0.0.1", 0), RemoteScorer(RewardItem(name, options=options), sound or SoundConfig()))
    with running(server):
        yield server.url


@contextmanager
def raw(*answers: Callable[[socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request and lets the next of `answers` do what it likes with the connection.

    Yields:
        Its url, and the bodies that it was sent; after the last answer that one is repeated.
    """
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            answers[min(len(bodies), len(answers)) - 1](self.connection)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    with running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/score", bodies


def sends(data: bytes) -> Callable[[socket], None]:
    return lambda connection: connection.sendall(data)


def says(body: str, status: str = "200 OK", *headers: str) -> Callable[[socket], None]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", *headers, "", body]
    return sends("\r\n".join(lines).encode())


def scores(*values: Any) -> Callable[[socket], None]:
    return says(json.dumps({"scores": [{"score": value} for value in values]}))
