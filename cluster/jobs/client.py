"""A client of the Jobs server whose every request has a time limit, and whose every failure is a message.

Ray's own client waits for ever, and lets the exceptions of its HTTP library through.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from speech.errors import UserError, last_line


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the Jobs server may take, in seconds.

    Attributes:
        connect: until it accepts a connection, and each piece of an upload.
        answer: until it begins to answer, and between two pieces of an answer.
        away: how long it may be away while a job is followed.
        retry: between two requests while a job is followed.
        quiet: without a new line of the log until it is asked whether it is still there.
    """

    connect: float = 10.0
    answer: float = 60.0
    away: float = 300.0
    retry: float = 1.0
    quiet: float = 30.0


LIMITS = Limits()

_NOT_OURS = "is no Ray Jobs server; its address has the form http://HEAD:8265"


class ServerAwayError(UserError):
    """The Jobs server does not answer, or a proxy says so in its place. It may come back."""


class RefusedRequestError(UserError):
    """The Jobs server refuses a request.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class JobsClient(JobSubmissionClient):
    """Ray's client; every method raises what `_do_request` raises.

    Args:
        address: `http://HEAD:8265`; the variables RAY_API_SERVER_ADDRESS and RAY_ADDRESS come before it.
        limits: the time that the server has.
    """

    def __init__(self, address: str, limits: Limits) -> None:
        self.limits = limits
        super().__init__(address)

    def _check_connection_and_version(self, *args: Any, **kwargs: Any) -> None:
        answer = self._do_request("GET", "/api/version")
        try:
            self._server_ray_version = str(answer.json()["ray_version"])
        except (ValueError, LookupError, TypeError):
            raise UserError(
                f"{self._address} {_NOT_OURS}: it answers {answer.status_code}: {cause(answer.text)}"
            ) from None

    def _do_request(
        self, method: str, endpoint: str, *, data: bytes | None = None, json_data: Any = None, **kwargs: Any
    ) -> requests.Response:
        """
        Raises:
            ServerAwayError: no connection, no answer in time, or that of a proxy without a server.
            AuthenticationError: it wants another token.
            UserError: whatever answers is no Jobs server, or does not take an upload of this size.
        """
        # Of a stream the limit holds for each piece; of bytes for the whole, however large it is.
        body = None if data is None else io.BytesIO(data)
        doing = "" if data is None else f" during the upload of {mebibytes(len(data))}"
        try:
            # A redirected POST becomes a GET, and a redirected token comes to somebody else.
            answer = super()._do_request(
                method,
                endpoint,
                data=body,
                json_data=json_data,
                timeout=(self.limits.connect, self.limits.answer),
                allow_redirects=False,
                **kwargs,
            )
        except requests.ConnectTimeout as error:
            raise self._away(f"no connection within {self.limits.connect:g} s{doing}") from error
        except requests.ReadTimeout as error:
            done = "; `speechrl jobs` may show that it did what was asked" if method == "POST" else ""
            raise self._away(f"no answer within {self.limits.answer:g} s{doing}{done}") from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise self._away(f"{_root(error)}{doing}") from error
        except (requests.RequestException, ValueError) as error:
            raise UserError(f"{self._address} {_NOT_OURS}: {last_line(error)}") from error
        if "charset" not in answer.headers.get("Content-Type", ""):
            answer.encoding = "utf-8"
        if 300 <= answer.status_code < 400:
            to = answer.headers.get("Location", "nowhere")
            raise UserError(
                f"{self._address} {_NOT_OURS}: it answers {answer.status_code}, a redirection to {to}; name the "
                f"server itself, without a login page before it"
            )
        if answer.status_code == requests.codes.request_entity_too_large:
            raise UserError(f"{self._address}: refused{doing}: too large (413) for it, or for a proxy before it")
        if answer.status_code in (502, 503, 504) or (answer.status_code >= 500 and method == "GET"):
            raise self._away(f"it answers {answer.status_code} {answer.reason}: {cause(answer.text)}")
        return answer

    def metrics_targets(self) -> list[str]:
        """`host:port` of each agent that gives metrics to Prometheus."""
        try:
            groups = self._do_request("GET", "/api/prometheus/sd").json()
            return [str(target) for group in groups for target in group["targets"]]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self._address}: does not say where its metrics are: {last_line(error)}") from error

    def _raise_error(self, r: requests.Response) -> None:
        if r.status_code == 404 and "does not exist" not in r.text:  # some proxies say so of a server that is away
            raise self._away(f"it answers 404: {cause(r.text)}")
        raise RefusedRequestError(r.status_code, f"{self._address}: refused ({r.status_code}): {cause(r.text)}")

    def _away(self, reason: str) -> ServerAwayError:
        proxies = requests.utils.get_environ_proxies(self._address)
        proxy = requests.utils.select_proxy(self._address, proxies)
        asked = f" (asked through the proxy {proxy}; set no_proxy where that is wrong)" if proxy else ""
        return ServerAwayError(f"{self._address}: no Ray Jobs server answers there: {reason}{asked}")


@contextmanager
def jobs_server(address: str | None) -> Iterator[JobsClient]:
    """A client of the Jobs server; what goes wrong with it inside the block comes out as a message.

    Raises:
        UserError: no server answers, it wants another token, or it refuses a request.
    """
    if address is not None:
        if not address.startswith(("http://", "https://")):
            raise UserError(f"--address {address}: the Jobs server's address has the form http://HEAD:8265")
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers the environment to what it is told
    shown = address or next(
        (os.environ[k] for k in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if k in os.environ), "http://127.0.0.1:8265"
    )
    try:
        client = JobsClient(shown, LIMITS)
    except AuthenticationError as error:
        raise _unauthenticated(shown, error) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:  # of the address of a cluster, not a server
        raise UserError(f"{shown}: no Ray Jobs server is found there: {cause(str(error))}") from error
    try:
        yield client
    except AuthenticationError as error:
        raise _unauthenticated(shown, error) from error
    except requests.RequestException as error:  # an answer that is no JSON
        raise UserError(f"{shown} {_NOT_OURS}: {last_line(error)}") from error


def _unauthenticated(address: str, error: AuthenticationError) -> UserError:
    return UserError(
        f"{address}: the cluster refuses the token ({str(error).splitlines()[0]}); set RAY_AUTH_MODE=token and the "
        f"cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH (docs/operations.md)"
    )


def cause(text: str) -> str:
    """What an answer comes down to: the last exception of a traceback, the title of a page, or the first lines."""
    if "Traceback (most recent call last)" in text:
        raised = re.findall(r"^[\w.]+(?:Error|Exception|Exit|Interrupt|Timeout): (.*)$", text, re.MULTILINE)
        if raised:
            return str(raised[-1]).strip()
    if re.search(r"<(!doctype|html)\b", text, re.IGNORECASE):
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        return f"a web page {' '.join(title[1].split())!r}" if title else "a web page"
    return " ".join(line.strip() for line in text.strip().splitlines()[:3])[:300] or "nothing"


def mebibytes(size: int) -> str:
    """A number of bytes as the Jobs server counts them."""
    return f"{size / 2**20:,.1f} MiB"


def _root(error: BaseException) -> str:
    """The innermost reason of a failed connection: the outer ones repeat the address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return last_line(error)
