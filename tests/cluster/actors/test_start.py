"""What Ray needs to start where its owner can write little."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.actors.start import ensure_token


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that what is set here ends with the test
    monkeypatch.delenv("RAY_AUTH_TOKEN")


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_a_home_that_cannot_be_written(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    ensure_token()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    ensure_token()
    assert os.environ["RAY_AUTH_TOKEN"] == token


def test_a_home_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ensure_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert list((tmp_path / ".ray").iterdir()) == [], "the token is Ray's to make"
