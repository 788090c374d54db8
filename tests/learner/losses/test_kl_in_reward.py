"""The KL that is taken off the reward: against a loop, and against the exact gradient of the KL of whole responses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from learner.batches.batch import BatchTotals
from learner.config import LossConfig
from learner.losses.policy.grpo import grpo_loss
from learner.losses.sums import is_one_sum
from learner.losses.terms import sums_to_come
from learner.registries import POLICY_LOSSES
from tests.learner.losses.test_grpo import LENGTHS, _packed_loss, _responses
from tests.learner.test_rank import make_spec

BETA = 0.3
CONFIG = LossConfig(kl_coef=BETA, kl_estimator="k1", kl_in="reward")


def test_sums_to_come() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 5.0, 7.0])
    lengths, sample_of = torch.tensor([3, 2]), torch.tensor([0, 0, 0, 1, 1])
    assert sums_to_come(values, lengths, sample_of).tolist() == [7.0, 6.0, 4.0, 12.0, 7.0]


@pytest.mark.parametrize("name", ["grpo", "dual_clip", "cispo"])
@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_equals_a_loop_in_which_each_token_has_its_own_advantage(name: str, spread: float) -> None:
    """One response per token: what remains of it has the advantage A − β Σ log π_old / π_ref of the tokens to come."""
    responses = _responses(spread)
    loss, metrics, new = _packed_loss(responses, CONFIG, policy_loss=POLICY_LOSSES.find(name))
    loss.backward()
    value, slopes = 0.0, []
    for response in responses:
        for t in range(len(response.new)):
            penalty = 0.0
            for later in range(t, len(response.new)):
                penalty += response.old[later] - response.reference[later]
            single = torch.tensor([response.new[t]], dtype=torch.float64, requires_grad=True)
            part, _ = POLICY_LOSSES.find(name)(
                new_logprobs=single,
                old_logprobs=torch.tensor([response.old[t]], dtype=torch.float64),
                behaviour_logprobs=torch.tensor([response.behaviour[t]], dtype=torch.float64),
                reference_logprobs=None,
                entropy=torch.ones(1, dtype=torch.float64),
                advantages=torch.tensor([response.advantage - BETA * penalty], dtype=torch.float64),
                sample_of=torch.tensor([0]),
                sample_lengths=torch.tensor([1]),
                totals=BatchTotals(sum(LENGTHS), len(LENGTHS)),
                config=LossConfig(),
            )
            part.backward()
            value += float(part.detach())
            slopes.append(float(single.grad))
    assert loss.item() == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(new.grad, torch.tensor(slopes, dtype=torch.float64))
    kl = sum(n - r for response in responses for n, r in zip(response.new, response.reference, strict=True))
    assert float(metrics["kl"]) == pytest.approx(kl), "logged as the KL, not as what is left of it"


def test_its_expected_gradient_is_that_of_the_kl_of_whole_responses() -> None:
    """All responses of a policy small enough to enumerate. A KL in the loss leaves out what a token does to the KL of
    the positions after it, so its gradient is another."""
    vocabulary, length = 3, 3
    generator = torch.Generator().manual_seed(3)
    prefixes = [p for n in range(length) for p in itertools.product(range(vocabulary), repeat=n)]
    shape = (len(prefixes), vocabulary)
    logits = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    reference = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
    place = {prefix: row for row, prefix in enumerate(prefixes)}
    responses = list(itertools.product(range(vocabulary), repeat=length))

    def logprobs(table: torch.Tensor, response: tuple[int, ...]) -> torch.Tensor:
        return torch.stack([table[place[response[:t]], response[t]] for t in range(length)])

    table = logits.log_softmax(-1)
    exact = torch.zeros((), dtype=torch.float64)
    for response in responses:
        ours = logprobs(table, response).sum()
        exact = exact + BETA * ours.exp() * (ours - logprobs(reference, response).sum())
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)

    def expected(config: LossConfig) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for response in responses:
            new = logprobs(table, response)
            part, _ = grpo_loss(
                new_logprobs=new,
                old_logprobs=new.detach(),
                behaviour_logprobs=new.detach(),
                reference_logprobs=logprobs(reference, response),
                entropy=torch.zeros_like(new),
                advantages=torch.zeros(1, dtype=torch.float64),
                sample_of=torch.zeros(length, dtype=torch.long),
                sample_lengths=torch.tensor([length]),
                totals=BatchTotals(1, 1),
                config=config,
            )
            loss = loss + new.sum().exp().detach() * part
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    torch.testing.assert_close(expected(CONFIG), wanted)
    in_loss = expected(LossConfig(kl_coef=BETA, kl_estimator="k1"))
    assert float((in_loss - wanted).abs().max()) > 0.01


def test_it_may_be_streamed() -> None:
    assert is_one_sum(make_spec(Path("model"), loss=CONFIG))
