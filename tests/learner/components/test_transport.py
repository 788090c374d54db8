"""Which way weights go, and what a rank makes of it. The GPU is a CPU here: what its driver would say is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from learner.batches.plan import plan_updates
from learner.components.transport import SPARE, Gpu, Outlet, Receivers, choose
from learner.rank import LearnerRank
from speech.runtime import device_weights, shared_weights
from speech.runtime.device_weights import DeviceBucket, DeviceStage, Lease
from speech.runtime.shared_weights import SharedBucket
from speech.runtime.weights import WeightBucket
from tests.learner.test_rank import make_batch, make_spec

SIZE, TOTAL = 15 * 10**9, 80 * 2**30
HERE = Receivers({"here"}, on_gpus=True)
GPU = Gpu(TOTAL, SIZE + SPARE)
CHOICES = [
    # receivers, GPU of rank 0, room in shared memory, transport, why
    (HERE, GPU, True, "device memory", "all engines are on GPUs of the node of rank 0"),
    (HERE, GPU, False, "device memory", ""),
    (Receivers({"here", "there"}, on_gpus=True), GPU, True, "object store", "engines are on other nodes"),
    (Receivers({"there"}, on_gpus=True), GPU, True, "object store", "engines are on other nodes"),
    (Receivers(set(), on_gpus=True), GPU, True, "object store", "no engine runs yet"),
    (Receivers({"here"}), None, True, "shared memory", "not both on GPUs"),
    (Receivers({"here"}), None, False, "object store", "no room for 15.0 GB"),
    (Receivers({"here"}), GPU, True, "shared memory", "not both on GPUs"),
    (HERE, None, True, "shared memory", "not both on GPUs"),
    (HERE, replace(GPU, free=SIZE + SPARE - 1), True, "shared memory", "15.0 GB to spare for 15.0 GB"),
    (HERE, replace(GPU, free=SIZE + SPARE - 1), False, "object store", "15.0 GB to spare for 15.0 GB"),
    (HERE, replace(GPU, growth=1), True, "shared memory", "to spare"),
    (HERE, replace(GPU, free=2 * SIZE, growth=SIZE), True, "shared memory", "12.9 GB to spare"),
    (HERE, replace(GPU, free=0, is_staged=True), True, "device memory", ""),
    (HERE, replace(GPU, is_staged=True, is_read=True), True, "shared memory", "still reads"),
    (HERE, replace(GPU, has_learned=False), True, "shared memory", "not known before the first"),
    (HERE, replace(GPU, fault="not supported"), True, "shared memory", "cannot share a copy: not supported"),
    (replace(HERE, take_back=0.9), replace(GPU, free=TOTAL), True, "shared memory", "6.4 GB to spare for 15.0 GB"),
    (replace(HERE, take_back=0.75), replace(GPU, free=TOTAL), True, "device memory", ""),
    (replace(HERE, take_back=0.75), replace(GPU, free=SIZE), True, "shared memory", "to spare"),
]


@pytest.mark.parametrize(("receivers", "gpu", "fits", "expected", "why"), CHOICES)
def test_the_transport_is_chosen_by_place_and_room(
    receivers: Receivers, gpu: Gpu | None, fits: bool, expected: str, why: str
) -> None:
    chosen, reason = choose(receivers, "here", SIZE, gpu, fits)
    assert chosen == expected and why in reason


@pytest.fixture
def rank(demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LearnerRank]:
    """On a CPU that says of itself what a GPU would."""
    for module in (device_weights, shared_weights):
        monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)

    def stub(outlet: Outlet, has_learned: bool, is_read: bool) -> Gpu:
        return Gpu(TOTAL, TOTAL, 0, has_learned, outlet.stage is not None, is_read, outlet._fault)

    monkeypatch.setattr(Outlet, "_gpu", stub)
    rank = LearnerRank(make_spec(demo_checkpoint), 0, 1, f"file://{tmp_path / 'meet'}")
    groups, audio = make_batch()
    rank.update(1, plan_updates(groups, [], 1, 1)[0], audio)
    yield rank
    if dist.is_initialized():
        rank.close()
    assert [path.name for path in tmp_path.iterdir()] in ([], ["meet"])


def published(rank: LearnerRank, dtype: torch.dtype = torch.bfloat16) -> list[object]:
    return list(rank.weight_buckets(dtype, 10_000, HERE, "here"))


def test_a_copy_on_the_device_is_what_the_object_store_would_get(rank: LearnerRank) -> None:
    sent = {
        name: tensor
        for bucket in rank.weight_buckets(torch.bfloat16, 10_000)
        if isinstance(bucket, WeightBucket)
        for name, tensor in bucket.tensors.items()
    }
    for _ in range(2):
        (bucket,) = published(rank)
        assert isinstance(bucket, DeviceBucket) and rank.outlet.chosen is not None
        assert rank.outlet.chosen[0] == "device memory"
        found = bucket.read()
        assert found.tensors.keys() == sent.keys() and bucket.shapes == found.shapes
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in sent.items())
    groups, audio = make_batch()
    rank.update(2, plan_updates(groups, [], 1, 1)[0], audio)
    late = bucket.read()
    assert all(torch.equal(late.tensors[name], tensor) for name, tensor in sent.items()), "training changes no copy"
    (newer,) = published(rank, torch.float32)  # of another size
    assert isinstance(newer, DeviceBucket)
    assert any(not torch.equal(newer.read().tensors[name].bfloat16(), tensor) for name, tensor in sent.items())
    with pytest.raises(FileNotFoundError):
        bucket.read()


def test_before_the_first_step_and_beside_a_reader_weights_take_another_way(rank: LearnerRank) -> None:
    rank.has_learned = False
    assert all(isinstance(bucket, SharedBucket) for bucket in published(rank))
    rank.has_learned = True
    (bucket,) = published(rank)
    assert isinstance(bucket, DeviceBucket)
    with Lease(bucket):
        before = bucket.read()
        groups, audio = make_batch()
        rank.update(2, plan_updates(groups, [], 1, 1)[0], audio)
        assert all(isinstance(other, SharedBucket) for other in published(rank))
        kept = bucket.read()
        assert kept.digests == before.digests, "what is read is left alone"
    (bucket,) = published(rank)
    assert isinstance(bucket, DeviceBucket) and bucket.read().digests != before.digests


def test_a_device_that_others_cannot_read_is_not_tried_twice(
    rank: LearnerRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fails(stage: DeviceStage) -> None:
        tries.append(stage.size)
        raise RuntimeError("CUDA error: operation not supported\nmore")

    monkeypatch.setattr(DeviceStage, "check", fails)
    for _ in range(2):
        assert all(isinstance(bucket, SharedBucket) for bucket in published(rank))
    assert rank.outlet.chosen is not None and rank.outlet.chosen[1].endswith("CUDA error: operation not supported")
    assert len(tries) == 1 and rank.outlet.stage is None


def test_no_room_after_all_is_no_failure(rank: LearnerRank, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device_weights, "_shareable", full)
    assert all(isinstance(bucket, SharedBucket) for bucket in published(rank))
