"""The learner's mathematics on a CUDA device against the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from learner.batches.packing import pack
from learner.model.policy import Policy
from learner.model.sampler import SamplerSettings
from speech.families import load_family
from tests.demo_checkpoint import write_demo_checkpoint
from tests.gpu import NEEDS_GPU
from tests.learner.test_rank import make_batch

pytestmark = NEEDS_GPU


def test_packed_log_probs_and_gradients_agree_with_the_cpu(tmp_path: Path) -> None:
    family = load_family(write_demo_checkpoint(tmp_path / "model", scale=2.0))
    groups, audio = make_batch()
    batch = pack(groups)
    results = {}
    for device in ("cpu", "cuda"):
        policy = Policy.load(family, ["language_model"], torch.float32).to(device)
        output = policy(batch, audio, SamplerSettings(temperature=0.9), 64)
        output.logprobs.sum().backward()
        gradients = {name: p.grad.cpu() for name, p in policy.named_parameters() if p.grad is not None}
        results[device] = (output.logprobs.detach().cpu(), gradients)
    torch.testing.assert_close(results["cuda"][0], results["cpu"][0], rtol=1e-3, atol=1e-3)
    for name, gradient in results["cpu"][1].items():
        torch.testing.assert_close(results["cuda"][1][name], gradient, rtol=1e-2, atol=1e-2, msg=name)
