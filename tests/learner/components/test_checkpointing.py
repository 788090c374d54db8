"""Activation checkpointing saves memory, not correctness; checkpoints restore weights and optimiser, and taking them
changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.batches.plan import plan_updates
from learner.components.optimiser import adamw
from learner.config import LearnerConfig
from learner.rank import LearnerRank
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.test_rank import make_batch, make_spec
from tests.learner.traced_memory import TracedMemory


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


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def course(sharp_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Weights after each of three updates, without a checkpoint anywhere."""
    meeting = tmp_path_factory.mktemp("course") / "meet"
    learner = LearnerRank(make_spec(sharp_checkpoint), 0, 1, f"file://{meeting}")
    weights = [updated(learner, 1, first=step) for step in (1, 2, 3)]
    learner.close()
    return weights


def test_saving_changes_nothing(sharp_checkpoint: Path, course: list[dict[str, torch.Tensor]], tmp_path: Path) -> None:
    learner = LearnerRank(make_spec(sharp_checkpoint), 0, 1, f"file://{tmp_path / 'meet'}")
    for step, expected in enumerate(course, start=1):
        learner.save(str(tmp_path / f"{step}-first"))
        learner.save(str(tmp_path / f"{step}-second"), background=step % 2 == 0)
        assert_equal(updated(learner, 1, first=step), expected)
    learner.close()


@pytest.mark.parametrize("done", [0, 1])
def test_loading_restores_all(
    sharp_checkpoint: Path, course: list[dict[str, torch.Tensor]], tmp_path: Path, done: int
) -> None:
    """Into a new rank, and into one that has gone on meanwhile; after an update and before the first."""
    learner = LearnerRank(make_spec(sharp_checkpoint), 0, 1, f"file://{tmp_path / 'a'}")
    for step in range(1, done + 1):
        updated(learner, 1, first=step)
    learner.save(str(tmp_path / "checkpoint"))
    updated(learner, 2, first=7)
    learner.load(str(tmp_path / "checkpoint"))
    assert_equal(updated(learner, 1, first=done + 1), course[done])
    learner.close()
    resumed = LearnerRank(make_spec(sharp_checkpoint), 0, 1, f"file://{tmp_path / 'b'}")
    resumed.load(str(tmp_path / "checkpoint"))
    for step in range(done + 1, 4):
        assert_equal(updated(resumed, 1, first=step), course[step - 1])
    resumed.close()


def test_moments_are_those_that_adamw_would_create() -> None:
    def trained(ready: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 4)
        optimiser = adamw(module, LearnerConfig(lr=0.1, weight_decay=0.1))
        if not ready:
            optimiser.state.clear()
        module(torch.ones(2, 3)).square().sum().backward()
        optimiser.step()
        optimiser.step()
        return module

    assert_equal(dict(trained(ready=True).named_parameters()), dict(trained(ready=False).named_parameters()))


def test_activation_checkpointing_holds_less(sharp_checkpoint: Path, tmp_path: Path) -> None:
    """By the sizes of tensors, in one micro-batch of many groups; logits are few at a time in both forms."""
    groups, audio = make_batch(40)
    peaks = {}
    for recompute in (False, True):
        spec = make_spec(
            sharp_checkpoint, activation_checkpointing=recompute, micro_batch_tokens=100_000, logits_chunk=8
        )
        learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / str(recompute)}")
        with TracedMemory() as memory:
            learner.update(1, plan_updates(groups, [], 1, 1)[0], audio)
        learner.close()
        peaks[recompute] = memory.peak
    assert peaks[True] < 0.8 * peaks[False], peaks
