"""A client of a reward server: every call has a deadline, and every failure is a reason, never a score."""

from __future__ import annotations

import dataclasses
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from rewards.over_http.breaker import CircuitBreaker
from rewards.over_http.protocol import RequestMessage, WrongMessageError, read_scores
from rewards.registry import PartScore

logger = logging.getLogger(__name__)

FAILURES = 3
"""Failed requests in a row after which a server is not asked."""
PAUSE_S = 30.0
FIRST_WAIT_S = 0.25
"""Before the second attempt; each further wait is twice as long."""
LARGEST_ANSWER = 16 * 2**20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that may answer the same request later."""
_SHOWN = 200


class RequestError(Exception):
    """A request failed; the message begins with its kind (`time-out: …`).

    Attributes:
        passing: whether the same request may succeed later.
    """

    def __init__(self, message: str, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class RewardClient:
    """Asks one server for the scores of a group.

    Args:
        url: `http://host:port/path` or `https://…`; redirects are not followed, for they would send texts and voices
            elsewhere.
        timeout_s: seconds for one request, from the connection to the last byte of its answer.
        retries: further requests after one that failed for a reason that may pass.

    Raises:
        ValueError: the url, or a number out of range.
    """

    def __init__(self, url: str, timeout_s: float, retries: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: {url!r} is not of the form http://host:port/path")
        if "@" in parts.netloc:
            raise ValueError("url: holds a user or password, which would be written into the run's config.yaml")
        if not timeout_s > 0 or retries < 0:
            raise ValueError("timeout_s is above 0, and retries at least 0")
        self._url, self._timeout_s, self._retries = url, timeout_s, retries
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection, self._host, self._port = kind, parts.hostname, parts.port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._breaker = CircuitBreaker(FAILURES, PAUSE_S, time.monotonic)

    def scores(self, request: RequestMessage) -> Sequence[PartScore]:
        """One score per sample of the request, in order. A failed call makes each of them invalid; raises nothing."""
        count = len(request.samples)
        if not count:
            return []
        if (refusal := self._breaker.refusal()) is not None:
            return [PartScore(invalid=refusal)] * count
        body = json.dumps(dataclasses.asdict(request)).encode("ascii")
        try:
            return self._with_retries(body, count)
        except RequestError as error:
            logger.warning("the reward server %s failed on %s: %s", self._url, request.prompt.id, error)
            return [PartScore(invalid=str(error))] * count

    def _with_retries(self, body: bytes, count: int) -> list[PartScore]:
        attempt = 0
        while True:
            try:
                scores = self._once(body, count)
            except RequestError as error:
                self._breaker.failed(str(error))
                attempt += 1
                if not error.passing or attempt > self._retries or self._breaker.refusal() is not None:
                    raise
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            else:
                self._breaker.succeeded()
                return scores

    def _once(self, body: bytes, count: int) -> list[PartScore]:
        answer = self._post(body)
        try:
            return read_scores(json.loads(answer), count)
        except WrongMessageError as error:
            raise RequestError(f"wrong answer: {error}", passing=False) from error
        except (ValueError, RecursionError) as error:
            raise RequestError(f"not JSON: {error}", passing=False) from error

    def _post(self, body: bytes) -> bytes:
        """The body of the answer 200 to a POST."""
        connection = self._connection(self._host, self._port, timeout=self._timeout_s)
        late = threading.Event()

        def hang_up() -> None:
            # The time-out of a socket is for each piece: a server that sends one byte a second would never end.
            late.set()
            if opened:
                try:
                    socket.socket.shutdown(opened[0], socket.SHUT_RDWR)
                except OSError:
                    logger.debug("%s had hung up first", self._url)

        opened: list[socket.socket] = []
        timer = threading.Timer(self._timeout_s, hang_up)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            opened.append(connection.sock)
            if late.is_set():
                raise TimeoutError
            headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            data = answer.read(LARGEST_ANSWER + 1)
            if late.is_set():  # what was read may be a part
                raise TimeoutError
            if len(data) <= LARGEST_ANSWER and answer.length:  # `read` of so many bytes does not say it itself
                raise http.client.IncompleteRead(data, answer.length)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise RequestError(f"time-out: no answer within {self._timeout_s:g} s", passing=True) from error
            raise RequestError(f"connection: {type(error).__name__}: {error}", passing=True) from error
        finally:
            timer.cancel()
            connection.close()
        return self._checked(answer, data)

    def _checked(self, answer: http.client.HTTPResponse, data: bytes) -> bytes:
        status = answer.status
        if 300 <= status < 400:
            where = answer.getheader("Location", "nowhere")
            raise RequestError(f"redirect: {status} to {where[:_SHOWN]}, which is not followed", passing=False)
        if status != http.client.OK:
            said = " ".join(data[:_SHOWN].decode("utf-8", "replace").split())
            raise RequestError(f"status {status}: {answer.reason}: {said}", passing=status in _PASSING)
        if len(data) > LARGEST_ANSWER:
            raise RequestError(f"wrong answer: longer than {LARGEST_ANSWER} bytes", passing=False)
        return data
