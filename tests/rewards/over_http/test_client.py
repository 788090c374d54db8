"""What becomes of a server's answers, against servers that misbehave for real."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rewards.compose import RewardComposition
from rewards.config import RewardConfig, RewardItem
from rewards.over_http import client
from rewards.over_http.breaker import CircuitBreaker
from rewards.registry import build_reward
from speech.errors import UserError
from speech.records import Group
from tests.rewards.conftest import build_group
from tests.rewards.over_http.servers import raw, says, scores, sends

Answer = Callable[[socket.socket], None]


@pytest.fixture
def group() -> Group:
    return build_group("go home now", ["go home now", "go"])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)


def ask(url: str, group: Group, **options: Any) -> list[tuple[float | None, str | None]]:
    """(total, reason) of each sample, as a run has them."""
    composition = RewardComposition(RewardConfig([RewardItem("http", options={"url": url, **options})]))
    return [(reward.total, reward.invalid) for reward in composition.score(group).rewards]


def test_scores_reasons_and_details(group: Group) -> None:
    rows = [{"score": 0.25, "details": {"words": 3}}, {"score": None, "reason": "judge: no voice"}]
    with raw(says(json.dumps({"scores": rows}))) as (url, bodies):
        composition = RewardComposition(RewardConfig([RewardItem("http", 2.0, {"url": url})]))
        first, second = composition.score(group).rewards
    assert (first.total, first.parts, first.details) == (0.5, {"http": 0.25}, {"http/words": 3.0})
    assert (second.total, second.invalid) == (None, "http: judge: no voice")
    sent = json.loads(bodies[0])
    assert sent["prompt"]["text"] == "go home now" and sent["prompt"]["id"] == "0/u"
    assert [sample["text"] for sample in sent["samples"]] == ["go home now", "go"]


def hold(connection: socket.socket) -> None:
    connection.settimeout(20)
    connection.recv(1)  # until the client hangs up


def drip(connection: socket.socket) -> None:
    """Each byte comes well within the time-out, and the answer never does."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 1000:
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.05)


CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + b'{"scores": ['
FAILURES: list[tuple[str, Answer, str, int]] = [
    ("hang", hold, "time-out: no answer within 0.4 s", 2),
    ("drip", drip, "time-out: no answer within 0.4 s", 2),
    ("closed", lambda connection: connection.shutdown(socket.SHUT_RDWR), "connection: RemoteDisconnected", 2),
    ("cut", sends(b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"scores": []}'), "connection: IncompleteRead", 2),
    ("cut chunk", sends(CHUNK), "connection: IncompleteRead", 2),
    ("no HTTP", sends(b"\x00\x01\x02 hello\r\n\r\n"), "connection: BadStatusLine", 2),
    ("busy", says("later", "503 Service Unavailable"), "status 503: Service Unavailable: later", 2),
    ("error", says('{"error": "boom"}', "500 Oops"), 'status 500: Oops: {"error": "boom"}', 2),
    ("refused", says("who are you", "403 Forbidden"), "status 403: Forbidden: who are you", 1),
    ("created", says("{}", "201 Created"), "status 201: Created", 1),
    (
        "moved",
        says("", "307 Temporary Redirect", "Location: http://elsewhere/"),
        "redirect: 307 to http://elsewhere/",
        1,
    ),
    ("text", says("one half"), "not JSON: ", 1),
    ("binary", says("\ufeff\x00"), "not JSON: ", 1),
    ("deep", says("[" * 100_000), "not JSON: ", 1),
    ("list", says("[0.5, 0.5]"), "wrong answer: expected", 1),
    ("one short", scores(0.5), "wrong answer: 1 scores for 2 samples", 1),
    ("one more", scores(0.5, 0.5, 0.5), "wrong answer: 3 scores for 2 samples", 1),
]


@pytest.mark.parametrize(("answer", "reason", "requests"), [row[1:] for row in FAILURES], ids=[r[0] for r in FAILURES])
def test_a_failed_call_makes_every_sample_invalid(group: Group, answer: Answer, reason: str, requests: int) -> None:
    with raw(answer) as (url, bodies):
        found = ask(url, group, timeout_s=0.4)
        assert len(bodies) == requests, "tried again only where that may help"
    assert [total for total, _ in found] == [None, None]
    assert all(str(why).startswith(f"http: {reason}") for _, why in found), found


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"score": NaN}', "not a finite number"),
        ('{"score": -Infinity}', "not a finite number"),
        ('{"score": 1' + "0" * 400 + "}", "not a finite number"),
        ('{"score": true}', "wrong answer: a score is a number or null, not bool"),
        ('{"score": "0.5"}', "wrong answer: a score is a number or null, not str"),
        ('{"score": [1]}', "wrong answer: a score is a number or null, not list"),
        ('{"score": null}', "the server gives no reason"),
        ("{}", "wrong answer: a score has the form"),
        ("0.5", "wrong answer: a score has the form"),
        ('{"score": 1, "details": {"a": "b"}}', "wrong answer: details are numbers by name"),
        ('{"score": 1, "details": {"a": NaN}}', "wrong answer: details are numbers by name"),
    ],
)
def test_one_wrong_score_leaves_its_neighbour(group: Group, row: str, reason: str) -> None:
    with raw(says(f'{{"scores": [{row}, {{"score": 1}}]}}')) as (url, _):
        (total, why), neighbour = ask(url, group)
    assert total is None and str(why).startswith(f"http: {reason}")
    assert neighbour == (1.0, None)


def test_what_passes_is_tried_again(group: Group) -> None:
    with raw(says("", "503 Busy"), lambda c: c.shutdown(socket.SHUT_RDWR), scores(0.5, 1)) as (url, bodies):
        assert ask(url, group, retries=2) == [(0.5, None), (1.0, None)]
        assert len(bodies) == 3 and bodies[0] == bodies[2]


def test_nobody_listens(group: Group) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "connection: ConnectionRefusedError" in str(ask(f"http://127.0.0.1:{port}", group)[0][1])


def test_https_is_not_answered_in_plain_text(group: Group) -> None:
    with raw(scores(1, 1)) as (url, bodies):
        total, reason = ask(url.replace("http://", "https://"), group, retries=0)[0]
    assert total is None and "connection: SSLError" in str(reason) and not bodies


def test_a_server_too_long_in_its_answer(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LARGEST_ANSWER", 1000)
    with raw(says(" " * 2000)) as (url, _):
        assert ask(url, group)[0] == (None, "http: wrong answer: longer than 1000 bytes")


def test_a_dead_server_is_not_asked_for_a_while_and_then_once(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_S", 0.5)
    dead, lock = threading.Event(), threading.Lock()
    dead.set()

    def answer(connection: socket.socket) -> None:
        with lock:
            (says("", "500 Down") if dead.is_set() else scores(0.5, 1))(connection)

    with raw(answer) as (url, bodies):
        http = build_reward("http", {"url": url})
        reasons = [str(http(group)[0].invalid) for _ in range(4)]
        assert [reason.split(": ")[0] for reason in reasons] == ["status 500", "status 500", "not asked", "not asked"]
        assert "3 failures in a row, the last: status 500: Down" in reasons[-1] and len(bodies) == 3
        time.sleep(0.6)
        assert "status 500" in str(http(group)[0].invalid) and len(bodies) == 4, "one request, which fails"
        assert "not asked" in str(http(group)[0].invalid) and len(bodies) == 4
        dead.clear()
        time.sleep(0.6)
        assert [[s.value for s in http(group)] for _ in range(2)] == [[0.5, 1.0]] * 2 and len(bodies) == 6


def test_the_breaker() -> None:
    now = [0.0]
    breaker = CircuitBreaker(2, 10.0, lambda: now[0])
    breaker.failed("a")
    breaker.succeeded()
    breaker.failed("b")
    assert breaker.refusal() is None, "not in a row"
    breaker.failed("c")
    now[0] = 9.9
    assert breaker.refusal() == "not asked: 2 failures in a row, the last: c; again in 0 s"
    now[0] = 10.0
    assert breaker.refusal() is None
    breaker.failed("d")
    assert breaker.refusal() is not None, "one failure after the pause begins another"
    now[0] = 20.0
    breaker.succeeded()
    assert breaker.refusal() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "url: required"),
        ({"url": "localhost:80"}, "is not of the form"),
        ({"url": "ftp://host/"}, "is not of the form"),
        ({"url": "http://me:secret@host/"}, "user or password"),
        ({"url": "http://host:port/"}, "[Pp]ort"),
        ({"url": "http://host/", "timeout_s": 0}, "timeout_s is above 0"),
        ({"url": "http://host/", "retry": 1}, "did you mean 'retries'"),
    ],
)
def test_wrong_options_are_found_with_the_configuration(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward("http", options)
