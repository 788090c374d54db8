"""One real engine for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rollout.config import EngineConfig
from rollout.environment import engine_environment

# Before vLLM and torch are imported. Insecure serialisation lets a test run a function inside vLLM's worker.
os.environ.update(engine_environment(EngineConfig(threads=1)), VLLM_ALLOW_INSECURE_SERIALIZATION="1")

import pytest

from tests.rollout.engine_driver import Driver, start_driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """The engine of a tied model, shared by all tests of the session."""
    driver = start_driver(tmp_path_factory.mktemp("tied"), tied=True)
    yield driver
    driver.close()
