"""Threads that watch a run: they outlive what they stumble over, and say so."""

from __future__ import annotations

import logging
import threading

import pytest

from cluster.monitoring import periodic
from cluster.monitoring.periodic import Periodic


class Stumbling(Periodic):
    """Fails the first `failures` times."""

    def __init__(self, failures: int) -> None:
        super().__init__("stumbling", 0.001)
        self.failures, self.looks = failures, 0
        self.sound = threading.Event()

    def look(self) -> None:
        self.looks += 1
        if self.looks <= self.failures:
            raise RuntimeError(f"look {self.looks}")
        self.sound.set()


def test_a_look_that_fails_is_logged_with_its_traceback_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Stumbling(1) as thread:
        assert thread.sound.wait(30)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "the stumbling thread failed to look" in record.getMessage()
    assert record.exc_info is not None and str(record.exc_info[1]) == "look 1"


def test_what_fails_for_ever_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with Stumbling(1000) as thread:
        assert thread.sound.wait(60)
    shown = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert shown == [f"look {2**i}" for i in range(10)]


def test_the_end_does_not_wait_for_ever_for_a_look(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(periodic, "JOIN_TIMEOUT_S", 0.1)
    begun, answer = threading.Event(), threading.Event()

    class Hanging(Periodic):
        def look(self) -> None:
            begun.set()
            answer.wait(60)

    with Hanging("hanging", 0.001):
        assert begun.wait(30)
    assert "the hanging thread still waits for an answer" in caplog.text
    answer.set()


def test_one_that_was_never_begun_can_be_ended() -> None:
    Stumbling(0).end()
