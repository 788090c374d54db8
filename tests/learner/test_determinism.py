"""Two runs of one seed must not part in the last bit, however many threads a rank has."""

from __future__ import annotations

from pathlib import Path

import torch

from learner.batches.batch import Sample, TrainGroup
from learner.batches.plan import plan_updates
from learner.rank import LearnerRank
from speech.records import PromptLayout
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.ranks import run_ranks
from tests.learner.test_rank import VOCABULARY, make_spec

REPEATS, SAMPLES = 4, 560


def _group() -> TrainGroup:
    """Many responses: their gradient at the position that all of them read, the prompt's last, takes two threads."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(6, VOCABULARY, (SAMPLES,), generator=generator).tolist()
    advantages = torch.randn(SAMPLES, generator=generator).tolist()
    samples = tuple(Sample((t,), (-1.0,), a) for t, a in zip(tokens, advantages, strict=True))
    return TrainGroup(PromptLayout((3, 4, 5), 0, 0), samples, 0)


def _gradients(rank: int, model: str, meeting: str, out: str) -> None:
    spec = make_spec(Path(model), threads=2, lr=0.0)
    learner = LearnerRank(spec, 0, 1, f"file://{meeting}")
    found: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        found.append(
            torch.cat([p.grad.full_tensor().flatten() for p in learner.policy.parameters() if p.grad is not None])
        )

    learner.optimiser.register_step_pre_hook(keep)
    [[share]] = [plan_updates([_group()], [], 1, 1)[0]]
    for step in range(1, REPEATS + 1):
        learner.update(step, [share], {})
    torch.save(found, out)
    learner.close()


def test_gradients_are_the_same_bit_for_bit_with_two_threads(tmp_path: Path) -> None:
    model = write_demo_checkpoint(tmp_path / "model")
    run_ranks(_gradients, 1, str(model), str(tmp_path / "meeting"), str(tmp_path / "out.pt"))
    first, *others = torch.load(tmp_path / "out.pt", weights_only=True)
    assert len(others) == REPEATS - 1 and first.abs().sum() > 0
    assert all(torch.equal(first, other) for other in others)
