from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from rollout.vllm_process import idle
from rollout.vllm_process.idle import PatientCondition


@pytest.fixture
def writer_and_reader(tmp_path: Path) -> Iterator[tuple[PatientCondition, PatientCondition]]:
    context = zmq.Context()
    address = f"ipc://{tmp_path}/notify"
    yield (
        PatientCondition(is_reader=False, context=context, notify_address=address),
        PatientCondition(is_reader=True, context=context, notify_address=address),
    )
    context.destroy(linger=0)


@pytest.fixture
def reader(writer_and_reader: tuple[PatientCondition, PatientCondition]) -> PatientCondition:
    """A reader whose writer never says anything."""
    return writer_and_reader[1]


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


def test_a_notification_ends_the_sleep(writer_and_reader: tuple[PatientCondition, PatientCondition]) -> None:
    writer, reader = writer_and_reader
    time.sleep(0.2)  # until the subscription stands
    reader.last_read = 0.0
    writer.notify()
    before = time.monotonic()
    reader.wait(timeout_ms=60_000)
    assert time.monotonic() - before < 30
