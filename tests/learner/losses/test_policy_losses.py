"""The policy losses beside GRPO: each against its paper's formula, written response by response."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner.batches.batch import BatchTotals
from learner.config import LossConfig
from learner.losses.policy.cispo import cispo_loss
from learner.losses.policy.dual_clip import BOUND, dual_clip_loss
from learner.losses.policy.gmpo import gmpo_loss
from learner.losses.policy.grpo import grpo_loss
from learner.losses.policy.gspo import gspo_loss
from learner.losses.sums import is_one_sum
from learner.losses.surrogates import PolicyLoss
from learner.registries import POLICY_LOSSES
from tests.learner.losses.test_grpo import LENGTHS, Response, _packed_loss, _responses, _slopes
from tests.learner.test_rank import make_spec

Terms = Callable[[Response, LossConfig], list[float]]
"""What a response's tokens contribute, to be minimised."""


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _gspo(response: Response, config: LossConfig) -> list[float]:
    length = len(response.new)
    ratio = math.exp(sum(response.new) / length - sum(response.old) / length)
    bounded = _clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
    return [-min(ratio * response.advantage, bounded * response.advantage)] * length


def _gmpo(response: Response, config: LossConfig) -> list[float]:
    """As the authors write it: the sign of the advantage goes into the logarithm, the minimum is taken there."""
    sign = 1 if response.advantage > 0 else -1
    low, high = math.log(1 - config.clip_low), math.log(1 + config.clip_high)
    product = 0.0
    for new, old in zip(response.new, response.old, strict=True):
        signed = sign * (new - old)
        bounded = sign * _clip(new - old, low, high)
        product += sign * min(signed, bounded)
    return [-response.advantage * math.exp(product / len(response.new))] * len(response.new)


def _dual_clip(response: Response, config: LossConfig) -> list[float]:
    terms = []
    for new, old in zip(response.new, response.old, strict=True):
        ratio = math.exp(new - old)
        bounded = _clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
        objective = min(ratio * response.advantage, bounded * response.advantage)
        terms.append(-max(objective, BOUND * response.advantage) if response.advantage < 0 else -objective)
    return terms


def _cispo(response: Response, config: LossConfig) -> list[float]:
    return [
        -_clip(math.exp(new - old), 1 - config.clip_low, 1 + config.clip_high) * response.advantage * new
        for new, old in zip(response.new, response.old, strict=True)
    ]


LOOPS: dict[PolicyLoss, Terms] = {
    gspo_loss: _gspo,
    gmpo_loss: _gmpo,
    dual_clip_loss: _dual_clip,
    cispo_loss: _cispo,
}
OF_SAMPLES = (gspo_loss, gmpo_loss)


def _loop(responses: list[Response], terms: Terms, config: LossConfig, of_samples: bool) -> float:
    tokens, loss = sum(len(r.new) for r in responses), 0.0
    for response in responses:
        distances = [old - behaviour for old, behaviour in zip(response.old, response.behaviour, strict=True)]
        if of_samples:
            distances = [sum(distances) / len(distances)] * len(distances)
        for t, term in enumerate(terms(response, config)):
            if config.importance_cap:
                term *= min(config.importance_cap, math.exp(distances[t]))
            d = response.new[t] - response.reference[t]
            term += config.kl_coef * (math.exp(-d) - 1 + d)
            loss += term / tokens if config.aggregation == "token" else term / len(response.new) / len(responses)
    return loss


@pytest.mark.parametrize("policy_loss", LOOPS, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("spread", [0.1, 1.5])
@pytest.mark.parametrize(("kl_coef", "cap"), [(0.0, 0.0), (0.3, 1.2)])
def test_equals_the_papers_formula(
    policy_loss: PolicyLoss, aggregation: str, spread: float, kl_coef: float, cap: float
) -> None:
    config = LossConfig(aggregation=aggregation, kl_coef=kl_coef, importance_cap=cap)  # type: ignore[arg-type]
    terms, of_samples = LOOPS[policy_loss], policy_loss in OF_SAMPLES
    responses = _responses(spread)
    loss, _, new = _packed_loss(responses, config, policy_loss=policy_loss)
    assert loss.item() == pytest.approx(_loop(responses, terms, config, of_samples), abs=1e-6)
    if policy_loss is cispo_loss:
        return  # its weight carries no gradient: tested below
    loss.backward()
    slopes = _slopes(responses, lambda: _loop(responses, terms, config, of_samples))
    torch.testing.assert_close(new.grad, slopes, atol=1e-6, rtol=1e-5)


def test_cispo_teaches_every_token_by_its_clipped_weight() -> None:
    responses, config = _responses(1.5), LossConfig(clip_low=1.0, clip_high=0.28)
    loss, metrics, new = _packed_loss(responses, config, policy_loss=cispo_loss)
    loss.backward()
    expected = [
        -min(math.exp(new - old), 1.28) * r.advantage / sum(LENGTHS)
        for r in responses
        for new, old in zip(r.new, r.old, strict=True)
    ]
    torch.testing.assert_close(new.grad, torch.tensor(expected, dtype=torch.float64))
    assert float(metrics["clipped_high"]) > 0 == float(metrics["clipped_low"])


def test_dual_clip_bounds_what_a_bad_token_can_cost() -> None:
    """Of a token that became 20 times as likely GRPO would take 20 times the advantage."""
    response = Response([-0.1], [-0.1 - math.log(20.0)], [-0.1], [-0.1], -2.0)
    for policy_loss, expected in ((grpo_loss, 40.0), (dual_clip_loss, BOUND * 2.0)):
        loss, _, new = _packed_loss([response], LossConfig(), policy_loss=policy_loss)
        loss.backward()
        assert loss.item() == pytest.approx(expected)
        assert new.grad is not None and (new.grad == 0).all() == (policy_loss is dual_clip_loss)


@pytest.mark.parametrize("policy_loss", LOOPS, ids=lambda loss: loss.__name__)
def test_on_policy_all_have_the_policy_gradient(policy_loss: PolicyLoss) -> None:
    """With one update per step they differ from GRPO in nothing, whatever the aggregation."""
    for aggregation in ("token", "sequence"):
        gradients = []
        for loss_of in (policy_loss, grpo_loss):
            config = LossConfig(aggregation=aggregation)  # type: ignore[arg-type]
            loss, _, new = _packed_loss(_responses(spread=0.0), config, policy_loss=loss_of)
            loss.backward()
            gradients.append(new.grad)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("policy_loss", LOOPS, ids=lambda loss: loss.__name__)
def test_parts_of_a_batch_add_up(policy_loss: PolicyLoss) -> None:
    responses, config = _responses(), LossConfig(aggregation="sequence", importance_cap=1.5)
    whole = BatchTotals(sum(LENGTHS), len(LENGTHS))
    loss, _, _ = _packed_loss(responses, config, policy_loss=policy_loss)
    parts = [_packed_loss([response], config, whole, policy_loss)[0] for response in responses]
    assert sum(float(part.detach()) for part in parts) == pytest.approx(loss.item())


@pytest.mark.parametrize("name", ["grpo", "gspo", "gmpo", "dual_clip", "cispo"])
def test_each_is_found_by_its_name_and_may_be_streamed(name: str) -> None:
    assert POLICY_LOSSES.find(name) in (*LOOPS, grpo_loss)
    assert is_one_sum(make_spec(Path("model"), loss=LossConfig(name=name)))
