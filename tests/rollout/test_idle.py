from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from rollout import idle
from rollout.idle import PatientCondition


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[PatientCondition]:
    """A reader with a writer that never says anything."""
    context = zmq.Context()
    address = f"ipc://{tmp_path}/notify"
    PatientCondition(is_reader=False, context=context, notify_address=address)
    yield PatientCondition(is_reader=True, context=context, notify_address=address)
    context.destroy(linger=0)


def test_a_reader_that_has_just_read_looks_again_unnotified_and_does_not_spin(reader: PatientCondition) -> None:
    reader.record_read()
    before, end, looks = psutil.Process().cpu_times(), time.monotonic() + 0.5, 0
    while time.monotonic() < end:
        reader.wait(timeout_ms=60_000)
        looks += 1
    after = psutil.Process().cpu_times()
    assert looks > 5
    assert (after.user + after.system) - (before.user + before.system) < 0.25


def test_after_a_while_it_sleeps_as_long_as_it_may(reader: PatientCondition) -> None:
    reader.last_read = time.monotonic() - 2 * idle.RECENT_S
    before = time.monotonic()
    reader.wait(timeout_ms=300)
    assert time.monotonic() - before >= 0.29


def test_a_notification_ends_the_sleep(tmp_path: Path) -> None:
    context = zmq.Context()
    address = f"ipc://{tmp_path}/notify"
    writer = PatientCondition(is_reader=False, context=context, notify_address=address)
    reader = PatientCondition(is_reader=True, context=context, notify_address=address)
    time.sleep(0.2)  # until the subscription stands
    reader.last_read = 0.0
    writer.notify()
    before = time.monotonic()
    reader.wait(timeout_ms=60_000)
    assert time.monotonic() - before < 30
    context.destroy(linger=0)
