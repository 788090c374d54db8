"""`speechrl train` with a reward that a server computes, one sample of each group without a score."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo_checkpoint import write_demo_checkpoint
from tests.end_to_end.runs import records, run, write_config
from tests.rewards.over_http.servers import serving

INVALID = "http: first_unknown: not heard"


@pytest.mark.slow
def test_samples_without_a_score_are_masked_and_counted(tmp_path: Path) -> None:
    model = write_demo_checkpoint(tmp_path / "model", tied=False, scale=1.5)
    with serving("tests.rewards.misbehaving_rewards:first_unknown") as url:
        items = [{"name": "accuracy", "weight": 0.1}, {"name": "http", "options": {"url": url}}]
        run("train", str(write_config(tmp_path, model, rewards__items=items, steps=2)))
    folder = tmp_path / "runs" / "tiny"
    for step, line in enumerate(records(folder / "metrics.jsonl"), start=1):
        rollouts = records(folder / "rollouts" / f"step-{step:06d}.jsonl")
        firsts, others = [], []
        for group in rollouts:
            first, *rest = group["samples"]
            firsts.append(first)
            others += rest
        assert {sample["invalid"] for sample in firsts} == {INVALID}
        assert {sample["reward"] for sample in firsts} == {None}, "neither 0 nor anything else"
        assert {sample["logprob_gap"] for sample in firsts} == {None}, "the learner has not seen them"
        assert all(sample["reward"] is not None and "http" in sample["parts"] for sample in others)
        assert any(sample["logprob_gap"] is not None for sample in others)
        assert line["reward/invalid"] == len(firsts) == line["rollout/trajectories"] / 3
        assert line["learner/grad_norm"] > 0
