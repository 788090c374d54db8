"""Credit of tokens: from rewards to advantages, and through the loss to the gradient of a policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.batches.advantage import advantage_per_reward, compute_batch_advantages
from learner.batches.batch import TrainGroup
from learner.batches.grouping import select_groups
from learner.batches.packing import pack, totals
from learner.batches.plan import plan_updates
from learner.config import LOSSES_OF_SAMPLES, LossConfig
from learner.rank import LearnerRank
from learner.registries import ADVANTAGES, POLICY_LOSSES
from speech.families import load_family
from speech.records import EncodedAudio, Reward
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.batches.packed_cases import random_group
from tests.learner.batches.test_grouping import scored
from tests.learner.losses.test_grpo import _packed_loss, _responses
from tests.learner.ranks import assert_streamed_as_whole, keep_gradients
from tests.learner.test_rank import make_batch, make_spec

NAMES = ("group_std", "group_mean", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline")


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_credit_is_scaled_as_rewards_are(name: str, data: st.DataObject) -> None:
    """A reward that is higher by x has an advantage that is higher by x times the scale, in any two samples."""
    values = st.integers(-30, 30).map(lambda x: x / 10)
    groups = data.draw(st.lists(st.lists(values, min_size=3, max_size=6), min_size=1, max_size=3))
    found = compute_batch_advantages(name, [(rewards, [True] * len(rewards)) for rewards in groups])
    for rewards, advantages in zip(groups, found, strict=True):
        scale = advantage_per_reward(advantages, rewards, [True] * len(rewards))
        for i, one in enumerate(rewards):
            for j, other in enumerate(rewards):
                assert advantages[i] - advantages[j] == pytest.approx(scale * (one - other), abs=1e-6)
    assert name in ADVANTAGES


def test_tokens_get_their_own_advantage_and_the_mean_stays() -> None:
    group = scored("a", [1.0, None, 0.0, 0.5])
    credited = replace(group.rewards[0], token_credit=(0.2, -0.2))
    rewards = (credited, Reward(total=None, invalid="time-out"), *group.rewards[2:])
    (chosen,) = select_groups([replace(group, rewards=rewards)], [0], "group_std", False).groups
    (plain,) = select_groups([group], [0], "group_std", False).groups
    assert [sample.advantage for sample in chosen.samples] == [sample.advantage for sample in plain.samples]
    std = 0.5
    assert chosen.samples[0].token_credit == pytest.approx((0.2 / std, -0.2 / std), rel=1e-5)
    assert [sample.token_credit for sample in chosen.samples[1:]] == [(), ()]
    assert pack([plain]).token_credit is None
    packed = pack([chosen]).token_credit
    assert packed is not None and packed.tolist() == pytest.approx([0.4, -0.4, 0, 0, 0, 0], rel=1e-5)


def test_a_group_without_variance_has_no_scale() -> None:
    group = scored("a", [1.0, 1.0])
    rewards = tuple(replace(reward, token_credit=(0.2, -0.2)) for reward in group.rewards)
    (kept,) = select_groups([replace(group, rewards=rewards)], [0], "group_std", True).groups
    assert all(sample.token_credit == (0.0, 0.0) for sample in kept.samples)


def test_credit_of_other_tokens_is_refused() -> None:
    group = random_group(3, [2, 4])
    wrong = replace(group.samples[1], token_credit=(1.0,))
    with pytest.raises(ValueError, match="4 tokens but 1 token credits"):
        pack([replace(group, samples=(group.samples[0], wrong))])


@pytest.mark.parametrize("name", ["grpo", "dual_clip", "cispo", *LOSSES_OF_SAMPLES])
def test_credit_in_each_policy_loss(name: str) -> None:
    """On policy the gradient is minus the token's advantage; in the losses of samples nothing of its own is left."""
    responses, config = _responses(spread=0.0), LossConfig(name=name)
    lengths = [len(response.new) for response in responses]
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(length, generator=generator, dtype=torch.float64) / 10 for length in lengths]
    credit = torch.cat([part - part.mean() for part in parts])
    loss, _, new = _packed_loss(responses, config, policy_loss=POLICY_LOSSES.find(name), token_credit=credit)
    loss.backward()
    sentence = torch.tensor([r.advantage for r in responses for _ in r.new], dtype=torch.float64)
    own = torch.zeros_like(credit) if name in LOSSES_OF_SAMPLES else credit
    # A response of advantage 0 has tokens of both signs, which GMPO bounds differently; nothing is bounded on policy.
    torch.testing.assert_close(new.grad, -(sentence + own) / sum(lengths))


def credited_batch() -> tuple[list[TrainGroup], dict[int, EncodedAudio]]:
    groups, audio = make_batch(3)
    generator = torch.Generator().manual_seed(11)

    def credited(sample: Any) -> Any:
        values = torch.randn(len(sample.token_ids), generator=generator)
        return replace(sample, token_credit=tuple((values - values.mean()).tolist()))

    return [
        replace(g, samples=(credited(g.samples[0]), *g.samples[1:2], credited(g.samples[2]))) for g in groups
    ], audio


def test_gradient_of_a_policy_equals_a_loop_over_tokens(tmp_path: Path) -> None:
    """The whole update, against plain transformers: one sample, one token at a time."""
    model = write_demo_checkpoint(tmp_path / "model", scale=2.0)
    spec = make_spec(model, loss=LossConfig(), max_grad_norm=0.0)
    groups, audio = credited_batch()
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    found = keep_gradients(learner.policy, learner.optimiser)
    learner.update(1, plan_updates(groups, [], 1, 1)[0], audio)
    learner.close()

    language_model = load_family(model).load_language_model()
    language_model.requires_grad_(True)
    embed, count = language_model.get_input_embeddings(), totals(groups).tokens
    for group in groups:
        layout = group.layout
        for sample in group.samples:
            credit = sample.token_credit or (0.0,) * len(sample.token_ids)
            embeddings = embed(torch.tensor([*layout.token_ids, *sample.token_ids]))
            where = torch.arange(layout.audio_start, layout.audio_start + layout.audio_length)
            embeddings = embeddings.index_copy(0, where, audio[group.audio].embeddings)
            logits = language_model(inputs_embeds=embeddings[None]).logits[0]
            loss = torch.zeros(())
            for step, (token, own) in enumerate(zip(sample.token_ids, credit, strict=True)):
                row = logits[len(layout.token_ids) - 1 + step]
                if step < spec.min_new_tokens:
                    row = row.index_fill(0, torch.tensor(spec.stop_ids), float("-inf"))
                logprob = (row / spec.temperature).log_softmax(0)[token]
                loss = loss - (sample.advantage + own) * logprob / count
            loss.backward()
    for name, parameter in language_model.named_parameters():
        torch.testing.assert_close(found[f"language_model.{name}"], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_streamed_groups_give_the_same_gradient(tmp_path: Path) -> None:
    """Group by group as they come, and all at once."""
    model = write_demo_checkpoint(tmp_path / "model", scale=2.0)
    spec = make_spec(model, loss=LossConfig())
    assert_streamed_as_whole(spec, *credited_batch(), tmp_path)
