"""Activation checkpointing saves memory, not correctness; checkpoints restore weights and optimiser."""

from __future__ import annotations

from pathlib import Path

import torch

from learner.batches.plan import plan_updates
from learner.rank import LearnerRank
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.test_rank import make_batch, make_spec


def updated(learner: LearnerRank, steps: int, first: int = 1) -> dict[str, torch.Tensor]:
    for step in range(first, first + steps):
        groups, audio = make_batch(seed=step)
        learner.update(step, plan_updates(groups, [], 1, 1)[0], audio)
    return {name: p.full_tensor().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]


def test_resume_is_exact_and_activation_checkpointing_recomputes(tmp_path: Path) -> None:
    model = write_demo_checkpoint(tmp_path / "model", scale=2.0)
    plain = LearnerRank(make_spec(model), 0, 1, f"file://{tmp_path / 'a'}")
    expected = updated(plain, 2)
    plain.save(str(tmp_path / "checkpoint"))
    expected_next = updated(plain, 2, first=3)
    plain.close()

    resumed = LearnerRank(make_spec(model, activation_checkpointing=True), 0, 1, f"file://{tmp_path / 'b'}")
    calls = 0
    layer = resumed.policy.language_model.base_model.layers[0].mlp

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    layer.register_forward_pre_hook(count)  # a recomputation may stop before the layer is through
    resumed.load(str(tmp_path / "checkpoint"))
    for name, parameter in resumed.policy.named_parameters():
        assert torch.equal(parameter.full_tensor(), expected[name]), name  # type: ignore[attr-defined]
    found = updated(resumed, 2, first=3)
    resumed.close()
    for name, tensor in expected_next.items():
        assert torch.equal(found[name], tensor), f"{name}: optimiser state was not restored"
    # Two steps of one micro-batch: reference and policy are separate modules; the policy's layer runs twice a step.
    assert calls == 4
