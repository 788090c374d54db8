"""Small servers in threads: some that are no Jobs server, and one that speaks the part of its protocol that we use."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiohttp import web


@contextmanager
def answering(status: int, body: str = "", content_type: str = "text/html", **headers: str) -> Iterator[str]:
    """The address of a server that gives one answer to everything; `{address}` in a header is its own."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if length := int(self.headers.get("Content-Length", 0)):
                self.rfile.read(length)
            content = body.encode()
            self.send_response(status)
            given = {"Content-Type": content_type, "Content-Length": str(len(content))} | headers
            for name, value in given.items():
                self.send_header(name, value.format(address=address))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def accepting(says: bytes | None) -> Iterator[str]:
    """The address of a server that accepts, says a few bytes and closes; None says nothing and keeps the connection."""
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if says is None:
                kept.append(connection)
                continue
            connection.recv(65536)
            connection.sendall(says)
            connection.close()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in kept:
            connection.close()


class JobsApi:
    """A Jobs server that remembers what it was asked.

    Attributes:
        jobs: what it says of each job; of a list one item at each question, the last one for ever.
        log: of every job.
        breaks: so many connections to a log break after its first line.
        silent_log: connections to a log stay open, and say nothing, after its last line.
        websockets: otherwise there is no connection to a log, as behind many a proxy.
        faults: statuses that it answers with instead, one at each question about a job; 0 closes the connection, −1
            never answers.
        submitted: bodies of the requests to submit.
        uploads: sizes of the packages that it was sent.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        self.log = ""
        self.breaks = 0
        self.silent_log = False
        self.websockets = True
        self.faults: list[int] = []
        self.submitted: list[dict[str, Any]] = []
        self.uploads: list[int] = []
        self.address = ""
        self._loop = asyncio.new_event_loop()

    @contextmanager
    def running(self) -> Iterator[JobsApi]:
        started = threading.Event()

        async def start() -> web.AppRunner:
            app = web.Application(client_max_size=100 * 2**20)
            app.add_routes(
                [
                    web.get("/api/version", self._version),
                    web.get("/api/packages/gcs/{name}", self._package),
                    web.put("/api/packages/gcs/{name}", self._upload),
                    web.get("/api/jobs/", self._list),
                    web.post("/api/jobs/", self._submit),
                    web.get("/api/jobs/{job}", self._info),
                    web.post("/api/jobs/{job}/stop", self._stop),
                    web.get("/api/jobs/{job}/logs", self._logs),
                    web.get("/api/jobs/{job}/logs/tail", self._tail),
                ]
            )
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            return runner

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            runner = self._loop.run_until_complete(start())
            started.set()
            self._loop.run_forever()
            self._loop.run_until_complete(runner.cleanup())
            waiting = asyncio.all_tasks(self._loop)
            for task in waiting:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))

        thread = threading.Thread(target=serve)
        thread.start()
        assert started.wait(30)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def add(self, job: str, *statuses: str, code: int | None = None) -> None:
        """A job that goes through states, one at each question about it."""
        runtime_env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "<redacted>"}}
        common = {"type": "SUBMISSION", "submission_id": job, "entrypoint": "x", "driver_exit_code": code}
        common["runtime_env"] = runtime_env
        self.jobs[job] = [common | {"status": status} for status in statuses]

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _upload(self, request: web.Request) -> web.Response:
        self.uploads.append(len(await request.read()))
        return web.Response()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([states[0] for states in self.jobs.values()])

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.submitted.append(body)
        job = body.get("submission_id", "made")
        if job in self.jobs and self.jobs[job][0]["status"] == "HIDDEN":
            return web.Response(status=500, text=_DUPLICATE.format(job=job))
        if job not in self.jobs:
            self.add(job, "PENDING")
        return web.json_response({"job_id": job, "submission_id": job})

    async def _info(self, request: web.Request) -> web.StreamResponse:
        if self.faults:
            fault = self.faults.pop(0)
            if fault > 0:
                return web.Response(status=fault, text="<html><title>Bad gateway</title></html>")
            if fault < 0:
                await asyncio.sleep(3600)
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        states = self.jobs.get(request.match_info["job"])
        if states is None or states[0]["status"] == "HIDDEN":
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        return web.json_response(states.pop(0) if len(states) > 1 else states[0])

    async def _stop(self, request: web.Request) -> web.Response:
        return web.json_response({"stopped": True})

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        if not self.websockets:
            return web.Response(status=400)
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        for line in self.log.splitlines(keepends=True):
            await answer.send_str(line)
            if self.breaks > 0:
                self.breaks -= 1
                assert request.transport is not None
                request.transport.close()
                return answer
        if self.silent_log:
            await asyncio.sleep(3600)
        await answer.close()
        return answer


_DUPLICATE = """Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_head.py", line 417, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
  File "/ray/dashboard/modules/job/job_head.py", line 134, in _raise_error
    raise RuntimeError(f"Request failed with status code {{status}}: {{error_text}}.")
RuntimeError: Request failed with status code 400: Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_agent.py", line 60, in submit_job
    submission_id = await self.get_job_manager().submit_job(
ValueError: Job with submission_id {job} already exists. Please use a different submission_id.
."""
"""What Ray 2.60 answers, shortened."""
