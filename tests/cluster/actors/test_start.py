"""What Ray needs to start where its owner can write little, and what is said when it does not start."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
import ray
import ray._private.node

from cluster.actors import start
from cluster.actors.start import TOO_SLOW, ensure_token, start_ray
from cluster.config import load_config
from speech.errors import UserError


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


@pytest.fixture
def failing_ray(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """`ray.init` raises the exception that a test puts here; nothing is started."""
    errors: list[Exception] = []

    def init(**settings: object) -> None:
        raise errors[0]

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(start, "ensure_token", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return errors


@pytest.mark.parametrize(
    ("load", "reason"), [(1e6, "this machine is overloaded: 1000000 processes want"), (0.0, "short of memory")]
)
def test_a_ray_that_is_too_slow_is_no_traceback(
    load: float, reason: str, failing_ray: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    failing_ray.append(Exception(f"The current node {TOO_SLOW}. This could happen because some of the raylet failed"))
    with pytest.raises(
        UserError, match=r"^Ray did not start within the 30 s .*then give the same command again"
    ) as told:
        start_ray(load_config("configs/asr_demo.yaml"))
    assert reason in str(told.value)


def test_any_other_failure_of_ray_keeps_its_traceback(failing_ray: list[Exception]) -> None:
    failing_ray.append(RuntimeError("Version mismatch"))
    with pytest.raises(RuntimeError, match="Version mismatch"):
        start_ray(load_config("configs/asr_demo.yaml"))


def test_it_is_what_ray_says() -> None:
    source = inspect.getsource(ray._private.node.Node.__init__)
    assert TOO_SLOW in source and "raylet_start_wait_time_s = 30\n" in source
