"""Which losses may be added up before the batch is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.batches.batch import BatchTotals
from learner.config import LossConfig
from learner.losses.sums import is_one_sum
from learner.registries import POLICY_LOSSES
from tests.learner.test_rank import make_spec


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("kl_estimator", ["k1", "k3", "full"])
def test_grpo_with_one_update_is_one_sum(aggregation: str, kl_estimator: str) -> None:
    loss = LossConfig(
        aggregation=aggregation,  # type: ignore[arg-type]
        constant_length=9,
        kl_coef=0.1,
        kl_estimator=kl_estimator,  # type: ignore[arg-type]
        importance_cap=2.0,
    )
    spec = make_spec(Path("model"), loss=loss)
    assert is_one_sum(spec)
    assert not is_one_sum(replace(spec, config=replace(spec.config, updates_per_step=2)))
    assert not any(is_one_sum(replace(spec, objective=other)) for other in ("sft", "diffro", "combined"))


def test_a_loss_that_divides_by_something_else_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def per_square_root(
        *, new_logprobs: torch.Tensor, totals: BatchTotals, **_: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        return new_logprobs.sum() / totals.tokens**0.5, {}

    monkeypatch.setattr(POLICY_LOSSES, "find", lambda name: per_square_root)
    assert not is_one_sum(make_spec(Path("model")))
