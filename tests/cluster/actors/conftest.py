"""Groups to score."""

from __future__ import annotations

import pytest

from tests.rewards.conftest import MakeGroup, build_group  # its import also lets workers find the tests' modules


@pytest.fixture
def make_group() -> MakeGroup:
    return build_group
