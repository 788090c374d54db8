"""A head that does not answer for a while, for real: its process is stopped and goes on."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from cluster.monitoring import head_watch
from cluster.monitoring.head_watch import HeadWatch


def test_a_silent_head_is_reported_once_and_its_return_too(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(head_watch, "EVERY_S", 0.1)
    monkeypatch.setattr(head_watch, "ANSWER_S", 1.0)
    (gcs,) = (p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server")

    def reports(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 30
        while not reports(text):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    with HeadWatch():
        time.sleep(0.5)
        assert not caplog.records
        gcs.send_signal(signal.SIGSTOP)
        try:
            wait_for("does not answer")
            time.sleep(2.5)  # it looks again
        finally:
            gcs.send_signal(signal.SIGCONT)
        wait_for("answers again")
    assert reports("does not answer") == 1
