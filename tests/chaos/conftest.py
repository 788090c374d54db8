from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.audit import surroundings


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Once the test's nodes and heads, whose fixtures come after this one, have ended too."""
    with surroundings() as around:
        yield
        assert not around.engine_processes()
        assert not around.left_behind()
