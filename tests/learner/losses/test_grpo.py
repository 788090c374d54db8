"""Losses against a plain, unpacked, loop-written version, and their independence of how a batch is split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from learner.batches.batch import BatchTotals, TrainGroup
from learner.batches.packing import balance_ranks, pack, split_micro_batches, totals
from learner.config import LossConfig
from learner.losses.policy.grpo import grpo_loss
from learner.losses.supervised import sft_loss
from learner.losses.surrogates import PolicyLoss
from learner.losses.terms import kl_terms
from learner.metrics import Metrics, reduce_metrics, summarise_metrics
from learner.model import attention
from learner.registries import POLICY_LOSSES
from speech.errors import UserError
from tests.learner.batches.packed_cases import gradients, largest_difference, packed_logprobs, random_group, tiny_model

LENGTHS = (4, 1, 7, 3, 5)


@dataclass
class Response:
    """One response as the loop-written loss sees it: plain lists, nothing packed."""

    new: list[float]
    old: list[float]
    behaviour: list[float]
    reference: list[float]
    advantage: float


def _responses(spread: float = 0.6, seed: int = 0) -> list[Response]:
    generator = torch.Generator().manual_seed(seed)

    def near(values: torch.Tensor) -> list[float]:
        return (values + spread * torch.randn(len(values), generator=generator, dtype=torch.float64)).tolist()

    result = []
    for length, advantage in zip(LENGTHS, (1.3, -0.7, 0.4, -2.0, 0.0), strict=True):
        new = -3 * torch.rand(length, generator=generator, dtype=torch.float64)
        result.append(Response(new.tolist(), near(new), near(new), near(new), advantage))
    return result


def _loop_loss(responses: list[Response], config: LossConfig) -> float:
    """GRPO as one would write it on paper: for each response, for each token."""
    token_count = sum(len(r.new) for r in responses)
    loss = 0.0
    for response in responses:
        for t in range(len(response.new)):
            ratio = math.exp(response.new[t] - response.old[t])
            low, high = 1 - config.clip_low, 1 + config.clip_high
            clipped = low if ratio < low else high if ratio > high else ratio
            term = -min(ratio * response.advantage, clipped * response.advantage)
            if config.importance_cap:
                term *= min(config.importance_cap, math.exp(response.old[t] - response.behaviour[t]))
            d = response.new[t] - response.reference[t]
            kl = {"k1": d, "k2": 0.5 * d * d, "k3": math.exp(-d) - 1 + d}[config.kl_estimator]
            term += config.kl_coef * kl
            if config.aggregation == "token":
                loss += term / token_count
            elif config.aggregation == "sequence":
                loss += term / len(response.new) / len(responses)
            else:
                loss += term / config.constant_length / len(responses)
    return loss


def _packed_loss(
    responses: list[Response],
    config: LossConfig,
    whole: BatchTotals | None = None,
    policy_loss: PolicyLoss = grpo_loss,
    token_credit: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Metrics, torch.Tensor]:
    def flat(name: str) -> torch.Tensor:
        return torch.tensor([x for r in responses for x in getattr(r, name)], dtype=torch.float64)

    lengths = torch.tensor([len(r.new) for r in responses])
    new = flat("new").requires_grad_()
    loss, metrics = policy_loss(
        new_logprobs=new,
        old_logprobs=flat("old"),
        behaviour_logprobs=flat("behaviour"),
        reference_logprobs=flat("reference"),
        entropy=torch.ones(len(new), dtype=torch.float64),
        advantages=torch.tensor([r.advantage for r in responses], dtype=torch.float64),
        sample_of=torch.repeat_interleave(torch.arange(len(responses)), lengths),
        sample_lengths=lengths,
        totals=whole or BatchTotals(int(lengths.sum()), len(responses)),
        config=config,
        token_credit=token_credit,
    )
    return loss, metrics, new


def _slopes(responses: list[Response], loss: Callable[[], float], step: float = 1e-6) -> torch.Tensor:
    """Of a loss of these responses along each of their new log-probs, by central differences."""
    slopes = []
    for response in responses:
        for t, value in enumerate(list(response.new)):
            sides = []
            for sign in (1, -1):
                response.new[t] = value + sign * step
                sides.append(loss())
            response.new[t] = value
            slopes.append((sides[0] - sides[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


CLIPS = ((0.2, 0.28), (0.0, 0.0), (1.0, 100.0))  # DAPO's, an empty range, and one that clips nothing
CASES = list(itertools.product(("token", "sequence", "constant"), ("k1", "k2", "k3"), CLIPS, (0.0, 0.3), (0.0, 1.5)))


@pytest.mark.parametrize(("aggregation", "estimator", "clip", "kl_coef", "cap"), CASES)
def test_equals_the_loop(
    aggregation: str, estimator: str, clip: tuple[float, float], kl_coef: float, cap: float
) -> None:
    config = LossConfig(
        clip_low=clip[0],
        clip_high=clip[1],
        kl_coef=kl_coef,
        kl_estimator=estimator,
        aggregation=aggregation,
        constant_length=16,
        importance_cap=cap,
    )
    responses = _responses()
    loss, _, new = _packed_loss(responses, config)
    assert loss.item() == pytest.approx(_loop_loss(responses, config), abs=1e-6)
    if estimator == "k1" and kl_coef:
        return  # its gradient is k2's by design: tested below
    # The gradient of the packed form is the slope of the loop's loss.
    loss.backward()
    assert new.grad is not None
    slopes = _slopes(responses, lambda: _loop_loss(responses, config))
    if clip != (0.0, 0.0):  # with an empty clip range every token sits on the corner of the minimum
        torch.testing.assert_close(new.grad, slopes, atol=1e-6, rtol=1e-5)


def test_clipping_stops_the_gradient_on_the_right_side_only() -> None:
    config = LossConfig(clip_low=0.2, clip_high=0.3)
    # log-ratios: far up, far down, inside; for a good and a bad response.
    shifts = [0.5, -0.5, 0.1]
    responses = [Response(shifts, [0.0] * 3, [0.0] * 3, [0.0] * 3, advantage) for advantage in (1.0, -1.0)]
    loss, metrics, new = _packed_loss(responses, config)
    loss.backward()
    assert new.grad is not None
    assert (new.grad == 0).tolist() == [True, False, False, False, True, False]
    assert (float(metrics["clipped_high"]), float(metrics["clipped_low"])) == (1, 1)


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    responses = _responses(spread=0.0)
    loss, metrics, new = _packed_loss(responses, LossConfig())
    loss.backward()
    expected = [-r.advantage / sum(LENGTHS) for r in responses for _ in r.new]
    torch.testing.assert_close(new.grad, torch.tensor(expected, dtype=torch.float64))
    summary = summarise_metrics(metrics)
    assert summary["importance_ess"] == summary["importance"] == 1
    assert summary["logprob_gap_max"] == summary["clipped_low"] == summary["clipped_high"] == 0


def _expected_kl_gradient(estimator: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Exact expectations over all tokens: value and gradient of an estimator, and the true KLs' gradients."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    probs = logprobs.exp()
    terms = kl_terms(logprobs, reference, estimator)
    # The sampler's probabilities carry no gradient: that is how a loss on samples sees them.
    expectation = (probs.detach() * terms).sum()
    (gradient,) = torch.autograd.grad(expectation, logits, retain_graph=True)
    reverse = (probs * (logprobs - reference)).sum()
    forward = (reference.exp() * (reference - logprobs)).sum()
    true = {
        "value": reverse.detach(),
        "reverse": torch.autograd.grad(reverse, logits, retain_graph=True)[0],
        "forward": torch.autograd.grad(forward, logits)[0],
    }
    return expectation.detach(), gradient, true


@pytest.mark.parametrize(("estimator", "kind"), [("k1", "reverse"), ("k2", "reverse"), ("k3", "forward")])
def test_kl_estimators_have_the_claimed_gradient(estimator: str, kind: str) -> None:
    value, gradient, true = _expected_kl_gradient(estimator)
    torch.testing.assert_close(gradient, true[kind])
    assert gradient.abs().max() > 1e-2  # the plain derivative of k1 has mean zero: as a loss it would teach nothing
    assert not torch.allclose(true["reverse"], true["forward"], atol=1e-2)
    if estimator == "k2":
        assert abs(value - true["value"]) > 1e-2  # biased, as the table says
    else:
        torch.testing.assert_close(value, true["value"])


def test_far_off_policy_tokens_stay_finite() -> None:
    responses = [Response([-0.1, -200.0], [-300.0, -0.1], [-300.0, -0.1], [-300.0, -0.1], -1.0)]
    config = LossConfig(kl_coef=0.1, importance_cap=2.0)
    loss, metrics, new = _packed_loss(responses, config)
    loss.backward()
    assert new.grad is not None and torch.isfinite(new.grad).all() and torch.isfinite(loss)
    assert all(math.isfinite(value) for value in summarise_metrics(metrics).values())


def test_metrics_merge_like_the_losses() -> None:
    config = LossConfig(kl_coef=0.1, importance_cap=1.2)
    responses = _responses()
    whole = BatchTotals(sum(LENGTHS), len(LENGTHS))
    loss, metrics, _ = _packed_loss(responses, config)
    parts = [_packed_loss([response], config, whole) for response in responses]
    assert sum(float(part[0].detach()) for part in parts) == pytest.approx(loss.item())
    together, apart = summarise_metrics(metrics), summarise_metrics(reduce_metrics(part[1] for part in parts))
    assert together == pytest.approx(apart)
    gaps = [abs(o - b) for r in responses for o, b in zip(r.old, r.behaviour, strict=True)]
    weights = [math.exp(o - b) for r in responses for o, b in zip(r.old, r.behaviour, strict=True)]
    assert together["tokens"] == len(gaps)
    assert together["logprob_gap"] == pytest.approx(sum(gaps) / len(gaps))
    assert together["logprob_gap_max"] == pytest.approx(max(gaps))
    ess = sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)
    assert together["importance_ess"] == pytest.approx(ess) and 0 < ess < 1
    assert together["entropy"] == 1.0


def test_metrics_with_a_count_of_their_own_are_means_per_that() -> None:
    parts = [
        {"tokens": torch.tensor(4), "nll": torch.tensor(6.0), "nll_count": torch.tensor(2)},
        {"tokens": torch.tensor(1), "nll": torch.tensor(3.0), "nll_count": torch.tensor(1)},
    ]
    assert summarise_metrics(reduce_metrics(parts)) == {"tokens": 5.0, "nll": 3.0}
    nothing = {
        "tokens": torch.tensor(0),
        "nll": torch.tensor(0.0),
        "of": torch.tensor(1.0),
        "of_count": torch.tensor(2),
    }
    assert summarise_metrics(nothing) == {"tokens": 0.0, "of": 0.5}


GROUPS = [random_group(5 + i, lengths, seed=i) for i, lengths in enumerate([(3, 6), (1, 2, 2), (8, 4), (5, 5, 5, 1)])]


def _model_loss(
    shares: list[list[list[TrainGroup]]], config: LossConfig | None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a batch cut into shares[rank][micro-batch]; `config` None is the supervised loss."""
    model = tiny_model("qwen3", attention.NAME)
    whole = totals(GROUPS)
    loss_sum = 0.0
    gradient_sum: dict[str, torch.Tensor] = {}
    for rank in shares:
        model.zero_grad()
        for part in rank:
            batch = pack(part)
            new = packed_logprobs(model, batch)
            if config is None:
                loss, _ = sft_loss(new, whole)
            else:
                loss, _ = grpo_loss(
                    new_logprobs=new,
                    # Any fixed values do for the other policies; here some ratios are clipped and some are not.
                    old_logprobs=new.detach() + 0.3 * torch.sin(batch.targets + batch.step_of),
                    behaviour_logprobs=new.detach() + 0.1 * torch.cos(batch.targets),
                    reference_logprobs=new.detach() + 0.5 * torch.cos(batch.step_of),
                    entropy=torch.zeros_like(new),
                    advantages=batch.advantages,
                    sample_of=batch.sample_of,
                    sample_lengths=batch.sample_lengths,
                    totals=whole,
                    config=config,
                )
            loss.backward()
            loss_sum += loss.item()
        for name, gradient in gradients(model).items():
            gradient_sum[name] = gradient_sum.get(name, 0) + gradient
    return loss_sum, gradient_sum


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "sft"])
def test_loss_and_gradients_do_not_depend_on_the_split(aggregation: str) -> None:
    config = LossConfig(aggregation=aggregation, constant_length=8, kl_coef=0.1, importance_cap=1.05)
    chosen = None if aggregation == "sft" else config
    loss, expected = _model_loss([[GROUPS]], chosen)
    four = split_micro_batches(GROUPS, 1)
    two_ranks = [split_micro_batches(share, 25) for share in balance_ranks(GROUPS, 2)]
    assert len(four) == 4 and all(two_ranks)
    for shares in ([four], two_ranks):
        other_loss, other = _model_loss(shares, chosen)
        assert other_loss == pytest.approx(loss, abs=1e-5)
        assert largest_difference(other, expected) < 1e-5


def test_misuse_is_refused() -> None:
    responses = _responses()
    with pytest.raises(ValueError, match="constant_length"):
        _packed_loss(responses, LossConfig(aggregation="constant"))
    with pytest.raises(ValueError, match="unknown aggregation"):
        _packed_loss(responses, LossConfig(aggregation="mean"))
    with pytest.raises(ValueError, match="unknown KL estimator"):
        _packed_loss(responses, LossConfig(kl_estimator="k4"))
    names = "new_logprobs old_logprobs behaviour_logprobs entropy advantages sample_of sample_lengths".split()
    inputs = dict.fromkeys(names, torch.ones(1))
    with pytest.raises(ValueError, match="reference policy"):
        grpo_loss(**inputs, reference_logprobs=None, totals=BatchTotals(1, 1), config=LossConfig(kl_coef=0.1))


def test_registry() -> None:
    assert POLICY_LOSSES.find("grpo") is grpo_loss
    with pytest.raises(UserError, match="unknown policy loss 'grpp'; did you mean 'grpo'"):
        POLICY_LOSSES.find("grpp")
