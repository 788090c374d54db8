"""A learner rank that leaves its GPU between updates learns what one that stays learns, and what it gives away is its
own weights in full precision."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from learner.batches.packing import pack
from learner.batches.plan import plan_updates
from learner.model import attention, segments
from learner.model.sampler import SamplerSettings
from learner.rank import LearnerRank
from speech.families import load_family
from tests.demo_checkpoint import write_demo_checkpoint
from tests.gpu import NEEDS_GPU
from tests.learner.test_rank import make_batch, make_spec

pytestmark = NEEDS_GPU


def updates(model: Path, meeting: Path, leaves: bool) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Weights after three updates, and the bytes that the rank gave back each time it left."""
    rank = LearnerRank(make_spec(model, gpus_per_rank=1.0), 0, 1, f"file://{meeting}")
    groups, audio = make_batch()
    freed = []
    try:
        for step in range(1, 4):
            rank.update(step, plan_updates(groups, [], 1, 1)[0], audio)
            if leaves:
                held = torch.cuda.memory_allocated()
                rank.offloader.offload()
                rank.offloader.offload()
                freed.append(held - torch.cuda.memory_allocated())
                assert attention._plan.cache_info().currsize == segments.plan.cache_info().currsize == 0
                rank.offloader.onload()
        (bucket,) = rank.weight_buckets(torch.float32, 2**30)
        return bucket.tensors, freed
    finally:
        dist.destroy_process_group()


def test_leaving_the_gpu_changes_nothing_and_frees_it(tmp_path: Path) -> None:
    model = write_demo_checkpoint(tmp_path / "model", scale=2.0)
    stayed, _ = updates(model, tmp_path / "meet-0", leaves=False)
    left, freed = updates(model, tmp_path / "meet-1", leaves=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in stayed.values())
    assert min(freed) >= 5 * size, "weights, gradients, two moments, and the reference policy's weights"
    for name, tensor in stayed.items():
        torch.testing.assert_close(left[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_forward_pass_changes_nothing_that_is_given_away(tmp_path: Path) -> None:
    """It leaves the root group gathered in bfloat16; publication and export are of the float32 shards."""
    model = write_demo_checkpoint(tmp_path / "model", scale=2.0)
    rank = LearnerRank(make_spec(model, gpus_per_rank=1.0), 0, 1, f"file://{tmp_path / 'meet'}")
    groups, audio = make_batch()
    try:
        rank.update(1, plan_updates(groups, [], 1, 1)[0], audio)
        (expected,) = rank.weight_buckets(torch.float32, 2**30)
        rank._evaluate(rank.policy, pack(groups), audio, SamplerSettings())
        (found,) = rank.weight_buckets(torch.float32, 2**30)
        rank._evaluate(rank.policy, pack(groups), audio, SamplerSettings())
        rank.save(str(tmp_path / "checkpoint"))
    finally:
        dist.destroy_process_group()
    exported = load_family(tmp_path / "checkpoint" / "hf").load_language_model()
    for name, parameter in exported.named_parameters():
        assert torch.equal(found.tensors[name], expected.tensors[name]), name
        assert torch.equal(parameter, expected.tensors[name]), name
