"""Weights in a buffer that other processes open. Here the memory is torch's shared memory; the processes are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rollout.leftovers import free_leftovers
from speech.runtime import device_weights, owned_folders
from speech.runtime.device_weights import DeviceBucket, DeviceStage, Lease, OpenedWeights, staged_size
from speech.runtime.owned_folders import SHARED_MEMORY
from speech.runtime.weights import tensor_digest
from tests.waiting import until

CPU = torch.device("cpu")
TENSORS = {
    "matrix": torch.randn(300, 400).bfloat16(),
    "odd": torch.randn(7).half(),
    "scalar": torch.tensor(2.0),
    "strided": torch.randn(6, 4).T,
    "empty": torch.zeros(0, 3),
    "last": torch.randn(1000),
}
SIZE = staged_size(tensor.nbytes for tensor in TENSORS.values())
READER = """
import json, sys, time
from speech.runtime.device_weights import DeviceBucket, Lease
bucket = DeviceBucket(**json.loads(sys.stdin.readline()))
if sys.argv[1] == "hold":
    lease = Lease(bucket)
    print("held", flush=True)
    time.sleep(600)
print(json.dumps(dict(bucket.read().digests)))
"""
SENDER = """
import json, sys, time, torch
from dataclasses import asdict
from speech.runtime.device_weights import DeviceStage
stage = DeviceStage("node", 4096, torch.device("cpu"))
print(json.dumps(asdict(stage.fill([("a", torch.ones(9))]))), flush=True)
time.sleep(600)
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceStage]:
    monkeypatch.setattr(device_weights, "SHARED_MEMORY", tmp_path)
    stage = DeviceStage("node", SIZE, CPU)
    yield stage
    stage.remove()
    assert not list(tmp_path.iterdir())


def python(script: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment())


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


def read_elsewhere(bucket: DeviceBucket) -> Any:
    """The digests of what another process reads, or its last words."""
    reader = python(READER, "read")
    out, errors = reader.communicate(json.dumps(asdict(bucket)) + "\n", timeout=120)
    return json.loads(out) if reader.returncode == 0 else errors.strip().splitlines()[-1]


def test_another_process_reads_what_was_put_there(stage: DeviceStage) -> None:
    bucket = stage.fill(TENSORS.items())
    assert bucket.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert read_elsewhere(bucket) == {name: tensor_digest(tensor) for name, tensor in TENSORS.items()}


def test_a_wrong_tensor_is_named_by_the_reader(stage: DeviceStage) -> None:
    bucket = stage.fill(TENSORS.items())
    stage._buffer[bucket.tensors["odd"][0] + 3] ^= 4
    assert read_elsewhere(bucket) == ("ValueError: tensor odd arrived changed: its digest differs from the sender's")
    opened = OpenedWeights(bucket, CPU)
    assert opened.holds(opened.verified("last")) and torch.equal(opened.verified("last"), TENSORS["last"])
    assert not opened.holds(TENSORS["last"])
    with pytest.raises(ValueError, match="tensor odd arrived changed"):
        opened.verified("odd")


def test_nothing_changes_under_a_reader_until_it_ends_however_it_ends(stage: DeviceStage) -> None:
    bucket = stage.fill(TENSORS.items())
    reader = python(READER, "hold")
    assert reader.stdin is not None and reader.stdout is not None
    reader.stdin.write(json.dumps(asdict(bucket)) + "\n")
    reader.stdin.flush()
    assert reader.stdout.readline() == "held\n"
    assert not stage.reclaim()
    with Lease(bucket) as second:  # it is whole, and others may begin to read it
        assert not second.is_broken
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    assert stage.reclaim()
    with pytest.raises(FileNotFoundError):
        Lease(bucket)
    later = stage.fill([("last", TENSORS["last"])])
    assert OpenedWeights(later, CPU).verified("last").equal(TENSORS["last"])
    assert later.seeds != bucket.seeds
    with pytest.raises(FileNotFoundError):
        bucket.read()


def test_a_reader_that_opened_the_lease_while_it_was_given_up_is_told(
    stage: DeviceStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = stage.fill(TENSORS.items())
    opening = os.open

    def slowly(path: Any, flags: int) -> int:
        descriptor = opening(path, flags)
        monkeypatch.setattr(device_weights.os, "open", opening)
        assert stage.reclaim()
        return descriptor

    monkeypatch.setattr(device_weights.os, "open", slowly)
    with pytest.raises(FileNotFoundError, match="given up"):
        Lease(bucket)


def test_a_killed_sender_breaks_leases_and_leaves_nothing() -> None:
    sender = python(SENDER)
    assert sender.stdout is not None
    bucket = DeviceBucket(**json.loads(sender.stdout.readline()))
    lease = Lease(bucket)
    assert not lease.is_broken
    assert owned_folders.has_owner(Path(bucket.lease).parent)
    sender.send_signal(signal.SIGKILL)
    sender.communicate()
    assert lease.is_broken
    with pytest.raises(FileNotFoundError):
        Lease(bucket)
    lease.close()
    free_leftovers()
    assert not Path(bucket.lease).parent.exists()
    (memory,) = [bytes.fromhex(str(part)).decode() for part in bucket.handle[1:2]]
    until(lambda: not (SHARED_MEMORY / memory.lstrip("/")).exists(), 30.0)


def test_engines_are_told_only_after_another_process_has_read(stage: DeviceStage) -> None:
    stage.check()
    assert stage.reclaim()
    manager, _, size = stage._handle
    stage._handle = (manager, b"/nowhere".hex(), size)
    with pytest.raises(RuntimeError, match=r"another process could not read the buffer: RuntimeError: unable to open"):
        stage.check()
    assert stage.reclaim()


def test_more_than_the_buffer_holds_is_an_error(stage: DeviceStage) -> None:
    with pytest.raises(ValueError, match="does not fit a buffer"):
        stage.fill([*TENSORS.items(), ("more", torch.ones(1))])
    with pytest.raises(ValueError, match="does not fit a buffer"):
        bucket = stage.fill(TENSORS.items())
        OpenedWeights(replace(bucket, tensors={"a": (SIZE - 4, "float32", (2,))}), CPU).read("a")
