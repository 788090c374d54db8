"""Every objective with each of its optional parts learns the same on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from learner.batches.packing import split_micro_batches
from learner.batches.plan import plan_updates
from learner.config import LossConfig, Token2TextTrainingConfig
from tests.learner.rank_cases import MICRO_BATCH, Case, Models, PolicyCase, Token2TextCase, run_cases

HEARING, ALL = ("language_model", "adaptor"), ("language_model", "adaptor", "encoder")
SEVERAL = {"updates_per_step": 2}

FAST: dict[str, Case] = {
    "sft-ctc": PolicyCase("sft", ALL, settings={"ctc_weight": 0.3, "augment": True}),
    "sft-encoder-alone-silent": PolicyCase("sft", ("encoder",), silent=(0, 3)),
    "sft-one-group": PolicyCase("sft", ALL, groups=1, settings={"ctc_weight": 0.3}),
    "grpo-adaptor-replay": PolicyCase("grpo", HEARING, replay=1, settings={"loss": LossConfig(kl_coef=0.1)}),
    "combined": PolicyCase("combined", settings=SEVERAL),
    "token2text": Token2TextCase(Token2TextTrainingConfig(mixup=0.5, adversarial=0.2, label_smoothing=0.1)),
}
"""What differs most from one another."""

SFT: dict[str, Case] = {
    "sft": PolicyCase("sft"),
    "sft-adaptor": PolicyCase("sft", HEARING),
    "sft-adaptor-alone": PolicyCase("sft", ("adaptor",)),
    "sft-adaptor-alone-silent": PolicyCase("sft", ("adaptor",), silent=(1, 4)),
    "sft-adaptor-silent": PolicyCase("sft", HEARING, silent=(0, 2)),
    "sft-encoder": PolicyCase("sft", ALL),
    "sft-encoder-alone": PolicyCase("sft", ("encoder",)),
    "sft-encoder-alone-ctc": PolicyCase("sft", ("encoder",), settings={"ctc_weight": 0.3}),
    "sft-all-silent": PolicyCase("sft", ALL, silent=(0, 1, 2, 3, 4), settings={"ctc_weight": 0.3}),
    "sft-ctc-silent": PolicyCase("sft", ALL, silent=(2, 3), settings={"ctc_weight": 0.3}),
    "sft-ctc-mixed": PolicyCase("sft", ALL, silent=(2, 3), settings={"ctc_weight": 0.3, "micro_batch_tokens": 60}),
    "sft-several": PolicyCase("sft", ALL, settings={"ctc_weight": 0.3, **SEVERAL}),
    "sft-checkpointing": PolicyCase("sft", HEARING, settings={"activation_checkpointing": True}),
    "sft-decay": PolicyCase("sft", ALL, groups=2, settings={"ctc_weight": 0.3, "weight_decay": 0.1}),
}

GRPO: dict[str, Case] = {
    "grpo": PolicyCase("grpo"),
    "grpo-kl": PolicyCase("grpo", settings={"loss": LossConfig(kl_coef=0.1)}),
    "grpo-kl-in-reward": PolicyCase(
        "grpo", settings={"loss": LossConfig(kl_coef=0.1, kl_estimator="k1", kl_in="reward"), **SEVERAL}
    ),
    "grpo-adaptor-alone": PolicyCase("grpo", ("adaptor",)),
    "grpo-adaptor-alone-silent": PolicyCase("grpo", ("adaptor",), silent=(0, 3)),
    "grpo-adaptor-kl-several": PolicyCase("grpo", HEARING, settings={"loss": LossConfig(kl_coef=0.1), **SEVERAL}),
    "grpo-replay": PolicyCase("grpo", replay=3),
    "grpo-replay-adaptor-alone": PolicyCase("grpo", ("adaptor",), replay=2),
    "grpo-replay-only": PolicyCase("grpo", HEARING, groups=0, replay=2, settings={"loss": LossConfig(kl_coef=0.1)}),
    "grpo-replay-several": PolicyCase("grpo", HEARING, groups=3, replay=1, settings=SEVERAL),
    "grpo-one-group": PolicyCase("grpo", HEARING, groups=1, settings=SEVERAL),
    "grpo-checkpointing": PolicyCase("grpo", ("adaptor",), settings={"activation_checkpointing": True}),
    "gspo": PolicyCase("grpo", settings={"loss": LossConfig(name="gspo", aggregation="sequence"), **SEVERAL}),
    "gmpo": PolicyCase("grpo", settings={"loss": LossConfig(name="gmpo", aggregation="sequence"), **SEVERAL}),
    "cispo": PolicyCase("grpo", settings={"loss": LossConfig(name="cispo", clip_low=1.0), **SEVERAL}),
    "dual-clip": PolicyCase("grpo", settings={"loss": LossConfig(name="dual_clip"), **SEVERAL}),
    "grpo-sequence": PolicyCase("grpo", settings={"loss": LossConfig(aggregation="sequence", importance_cap=2.0)}),
}

DIFFRO: dict[str, Case] = {
    "diffro": PolicyCase("diffro"),
    "diffro-bare": PolicyCase("diffro", settings={"attributes": 0.0, "kl_coef": 0.0}),
    "diffro-all-samples": PolicyCase("diffro", settings={"filter": "none", "kl_coef": 0.0}),
    "diffro-long": PolicyCase("diffro", long=(0, 2, 3), settings={"filter": "none"}),
    "diffro-all-impossible": PolicyCase("diffro", groups=2, long=(0, 1)),
    "diffro-one-group": PolicyCase("diffro", groups=1, settings=SEVERAL),
    "combined-estimated-kl": PolicyCase("combined", settings={"kl_coef": 0.0, "loss": LossConfig(kl_coef=0.1)}),
    "combined-checkpointing": PolicyCase("combined", settings={"activation_checkpointing": True, "logits_chunk": 7}),
    "combined-all-samples": PolicyCase("combined", settings={"filter": "none", **SEVERAL}),
}

TOKEN2TEXT: dict[str, Case] = {
    "token2text-plain": Token2TextCase(),
    "token2text-without-attributes": Token2TextCase(Token2TextTrainingConfig(attributes=0.0)),
    "token2text-noise": Token2TextCase(Token2TextTrainingConfig(noise=0.2, mixup=0.5)),
    "token2text-adversarial": Token2TextCase(Token2TextTrainingConfig(adversarial=0.2)),
    "token2text-one-utterance": Token2TextCase(items=1),
}


@pytest.fixture(scope="module")
def models(sharp_checkpoint: Path, token2text_judge: Path) -> Models:
    return Models(sharp_checkpoint, token2text_judge)


def assert_same(name: str, one: dict[str, Any], many: dict[str, Any]) -> None:
    largest = 0.0
    for expected, found in zip(one["gradients"], many["gradients"], strict=True):
        assert expected.keys() == found.keys() == set(one["trained"]), f"{name}: a parameter without a gradient"
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5, msg=f"{name}: {parameter}")
            largest = max(largest, float(gradient.abs().max()))
    assert largest > 1e-3, name
    for expected, found in zip(one["metrics"], many["metrics"], strict=True):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4), name
    for parameter, weight in one["weights"].items():
        # AdamW makes a part of the learning rate, which is 1e-3, of a rounding difference in a tiny gradient.
        torch.testing.assert_close(many["weights"][parameter], weight, rtol=0.0, atol=5e-4, msg=f"{name}: {parameter}")


def compare(cases: dict[str, Case], models: Models, ranks: int, folder: Path) -> None:
    many = run_cases(list(cases.values()), models, ranks, folder)
    for (name, case), found in zip(cases.items(), many, strict=True):
        assert_same(name, case.run(models, 0, 1, str(folder / f"alone-{name}")), found)


@pytest.mark.parametrize(("ranks", "names"), [(2, list(FAST)), (3, ["sft-one-group", "grpo-adaptor-replay"])])
def test_ranks_do_not_matter(ranks: int, names: list[str], models: Models, tmp_path: Path) -> None:
    compare({name: FAST[name] for name in names}, models, ranks, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "cases", [FAST, SFT, GRPO, DIFFRO, TOKEN2TEXT], ids=["fast", "sft", "grpo", "diffro", "token2text"]
)
def test_ranks_do_not_matter_to_anything(cases: dict[str, Case], ranks: int, models: Models, tmp_path: Path) -> None:
    compare(cases, models, ranks, tmp_path)


def test_the_cases_reach_what_they_are_named_for() -> None:
    """Unequal numbers of micro-batches, and a rank without any of its own."""
    counts = {}
    for name in ("sft-ctc", "sft-one-group"):
        case = FAST[name]
        assert isinstance(case, PolicyCase)
        groups, replay, _ = case.batch(1)
        counts[name] = [
            len(split_micro_batches(share.groups, MICRO_BATCH)) for [share] in plan_updates(groups, replay, 1, 3)
        ]
    assert len(set(counts["sft-ctc"])) > 1 and sorted(counts["sft-one-group"]) == [0, 0, 1]
