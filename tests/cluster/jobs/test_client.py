"""Whatever answers in the place of a Jobs server, or does not: one message with code 2, in limited time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from cluster import cli
from cluster.jobs import client
from cluster.jobs.client import Limits, cause
from tests.cluster.jobs.servers import accepting, answering

LOGIN = "<!DOCTYPE html><html><head><title>Sign in –\n Example</title></head><body>…</body></html>"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # restored afterwards
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", [["jobs"], ["stop", "x"], ["stop", "--all"]])
@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (lambda: answering(200, LOGIN), "is no Ray Jobs server"),
        (lambda: answering(404, LOGIN), "it answers 404: a web page 'Sign in – Example'"),
        (lambda: answering(200, "[1, 2]", "application/json"), "is no Ray Jobs server"),
        (lambda: answering(200, '{"version": 3}', "application/json"), "is no Ray Jobs server"),
        (lambda: answering(500, "no GCS"), "no Ray Jobs server answers there: it answers 500"),
        (lambda: answering(503, LOGIN), "it answers 503 Service Unavailable: a web page"),
        (lambda: answering(302, Location="{address}/api/version"), "it answers 302, a redirection to http://127.0.0.1"),
        (lambda: answering(307), "a redirection to nowhere"),
        (lambda: answering(401, "who?"), "refuses the token"),
        (lambda: accepting(b""), "no Ray Jobs server answers there: Remote end closed connection"),
        (lambda: accepting(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), "no Ray Jobs server answers there"),
        (lambda: accepting(b"SSH-2.0-OpenSSH_9.6\r\n"), "no Ray Jobs server answers there"),
    ],
)
def test_what_is_no_jobs_server_is_a_message(
    command: list[str],
    server: Callable[[], AbstractContextManager[str]],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with server() as address:
        assert cli.main([*command, "--address", address]) == 2
    err = capsys.readouterr().err
    assert expected in err and address in err and "Traceback" not in err
    assert err.count("\n") == 1, "one line"


@pytest.mark.parametrize("command", [["jobs"], ["stop", "x"]])
def test_silence_has_a_limit(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LIMITS", Limits(answer=0.3))
    with accepting(None) as address:
        assert cli.main([*command, "--address", address]) == 2
    assert f"{address}: no Ray Jobs server answers there: no answer within 0.3 s" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://", "http://[::1", "http://a b:1", "http://.:1", f"http://{'x' * 70}:1"])
def test_what_is_no_address_is_a_message(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jobs", "--address", address]) == 2
    assert "Traceback" not in (err := capsys.readouterr().err) and "Jobs server" in err


def test_a_cluster_that_is_none_is_a_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert cli.main(["jobs"]) == 2
    assert "nonsense: no Ray Jobs server is found there: Invalid address format" in capsys.readouterr().err


def test_a_server_without_tls_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200) as address:
        assert cli.main(["jobs", "--address", address.replace("http", "https")]) == 2
    assert "no Ray Jobs server answers there" in capsys.readouterr().err


def test_a_proxy_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with answering(503, LOGIN) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert cli.main(["jobs", "--address", "http://head.example:8265"]) == 2
    assert f"asked through the proxy {proxy}; set no_proxy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Traceback (most recent call last):\n  File x\nRuntimeError: 400: Traceback\nValueError: taken.\n.", "taken."),
        ("Traceback (most recent call last):\n  cut off", "Traceback (most recent call last): cut off"),
        ("<html><body>x</body></html>", "a web page"),
        ("a\nb\nc\nd", "a b c"),
        ("", "nothing"),
    ],
)
def test_cause(text: str, expected: str) -> None:
    assert cause(text) == expected
