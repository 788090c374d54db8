"""Which losses can be added up before the size of the batch is known."""

from __future__ import annotations

import torch

from learner.batches.batch import BatchTotals
from learner.config import LossConfig
from learner.registries import POLICY_LOSSES
from learner.spec import RankSpec

ONE = BatchTotals(1, 1, 1, 1)
"""Under these a loss is a plain sum."""


def divisor(totals: BatchTotals, config: LossConfig) -> int:
    """What `token_weights` divides by, apart from what belongs to each sample alone."""
    return totals.tokens if config.aggregation == "token" else totals.samples


def is_one_sum(spec: RankSpec) -> bool:
    """Whether the gradient of a step is a sum over its groups that is divided once, by `divisor`.

    So it is in `grpo` with one update per step. DiffRO divides by counts of its own: beside the policy's terms their
    ratio is known only when all groups are. Of several updates, the first needs every group's log-probs before it. And
    a policy loss of a user's may divide by whatever it likes: it is tried on some numbers.
    """
    return spec.objective == "grpo" and spec.config.updates_per_step == 1 and _divides_by_counts(spec.config.loss)


def _divides_by_counts(config: LossConfig) -> bool:
    generator = torch.Generator().manual_seed(0)
    old, behaviour, reference, new = torch.rand(4, 5, generator=generator, dtype=torch.float64).neg()
    loss = POLICY_LOSSES.find(config.name)

    def gradient(totals: BatchTotals) -> torch.Tensor:
        learned = new.clone().requires_grad_()
        value, _ = loss(
            new_logprobs=learned,
            old_logprobs=old,
            behaviour_logprobs=behaviour,
            reference_logprobs=reference,
            entropy=torch.ones_like(old),
            advantages=torch.tensor([1.0, -0.5]),
            sample_of=torch.tensor([0, 0, 0, 1, 1]),
            sample_lengths=torch.tensor([3, 2]),
            totals=totals,
            config=config,
        )
        value.backward()
        return learned.grad * divisor(totals, config)

    return torch.allclose(gradient(ONE), gradient(BatchTotals(11, 3, 2, 7)), rtol=1e-6, atol=1e-12)
