"""DiffRO and its reward model on a CUDA device against the CPU: the noise, the loss, whole updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from learner.batches.packing import pack, totals
from learner.batches.plan import plan_updates
from learner.losses.gumbel import gumbel_noise, position_keys
from learner.rank import LearnerRank
from tests.gpu import NEEDS_GPU
from tests.learner.losses import test_diffro
from tests.learner.losses.test_diffro import make_groups, spec_for
from tests.learner.token2text.test_rank import learn_and_read

pytestmark = NEEDS_GPU


def test_the_noise_is_the_same_on_every_device() -> None:
    index = torch.arange(400)
    found = {
        device: gumbel_noise(position_keys(7, 3, *(index.to(device) // n for n in (100, 10, 1))), 6561).cpu()
        for device in ("cpu", "cuda")
    }
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("noise", ["fresh", "conditional"])
@pytest.mark.parametrize("chunk", [1000, 7])
def test_loss_and_gradients_agree_with_the_cpu(noise: str, chunk: int) -> None:
    groups = make_groups()
    batch = pack(groups)
    found = []
    for device in ("cpu", "cuda"):
        term = test_diffro.diffro(chunk, noise=noise, attributes=0.5)
        term.reward_model.to(device)
        start = test_diffro.fake_output(batch)
        output = test_diffro.output_of(
            start.hidden.detach().to(device).requires_grad_(), start.head.detach().to(device)
        )
        loss, metrics = term.loss(output, batch, totals(groups, "positive"), 0.9, 2)
        gradients = torch.autograd.grad(loss, (output.hidden, output.head))
        found.append([tensor.detach().cpu() for tensor in (loss, *gradients, metrics["text_nll"].double())])
    for cpu, cuda in zip(*found, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-4, atol=1e-6)
    assert float(found[0][1].abs().max()) > 1e-4


@pytest.mark.parametrize("objective", ["grpo", "diffro", "combined"])
def test_an_update_points_where_the_cpus_does(
    sharp_checkpoint: Path, token2text_judge: Path, tmp_path: Path, objective: str
) -> None:
    """bfloat16 against float32: not the same gradient, but the same direction in every large matrix."""
    found = {}
    for gpus in (0.0, 1.0):
        spec = spec_for(sharp_checkpoint, token2text_judge, objective=objective, gpus_per_rank=gpus)
        found[gpus] = test_diffro.one_update(0, 1, str(tmp_path / f"meet-{gpus}"), spec)
    cpu, cuda = found[0.0]["gradients"], found[1.0]["gradients"]
    assert cuda.keys() == cpu.keys() and cpu
    flat = [torch.cat([part[name].cpu().flatten() for name in sorted(part)]) for part in (cpu, cuda)]
    assert float(F.cosine_similarity(*flat, dim=0)) > 0.99
    assert float(flat[1].norm()) == pytest.approx(float(flat[0].norm()), rel=0.05)
    for name in ("diffro/text_nll", "learner/full_kl", "learner/entropy", "learner/logprob_gap"):
        if name in found[0.0]["metrics"]:
            assert found[1.0]["metrics"][name] == pytest.approx(found[0.0]["metrics"][name], rel=0.05), name


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(
    sharp_checkpoint: Path, token2text_judge: Path, tmp_path: Path
) -> None:
    """Weights and moments leave the device for the disk and come back to it."""
    spec = spec_for(sharp_checkpoint, token2text_judge, gpus_per_rank=1.0)
    share = plan_updates(make_groups(), [], 1, 1, "positive")[0]

    def weights(meeting: str, start: str | None, steps: list[int], save: str | None = None) -> dict[str, torch.Tensor]:
        rank = LearnerRank(spec, 0, 1, f"file://{tmp_path / meeting}")
        try:
            if start:
                rank.load(start)
            for step in steps:
                rank.update(step, share, {})
                if save and step == steps[0]:
                    rank.save(save)
            return {k: v for bucket in rank.weight_buckets(torch.float32, 2**30) for k, v in bucket.tensors.items()}
        finally:
            rank.close()

    whole = weights("a", None, [1, 2], save=str(tmp_path / "checkpoint"))
    resumed = weights("b", str(tmp_path / "checkpoint"), [2])
    before = weights("c", str(tmp_path / "checkpoint"), [])
    assert any(not torch.equal(whole[name], before[name]) for name in whole), "the second update changed something"
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("robust", [False, True])
def test_the_reward_model_learns_to_read(robust: bool, tmp_path: Path) -> None:
    """The objective `token2text` in bfloat16, and its reading there against the saved model's in float32 on the CPU."""
    metrics, items, readings, outputs = learn_and_read(tmp_path, robust, steps=120, gpus_per_rank=1.0)
    assert metrics["learner/nll"] < 1.0
    right, same = 0, 0
    for i, (item, output) in enumerate(zip(items, outputs, strict=True)):
        right += readings[i].labels == item.text_ids
        same += readings[i].labels == output.greedy_labels()[0]
        assert readings[i].nll == pytest.approx(-float(output.text_log_likelihood([item.text_ids])), rel=0.1, abs=0.1)
    assert right >= 45 and same >= 48
