"""Adaptor and encoder learn through a rank what plain modules learn, one sample at a time, without packing or FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learner.batches.batch import Sample, TrainGroup
from learner.batches.plan import plan_updates
from learner.components.optimiser import adamw
from learner.config import LearnerConfig
from learner.rank import LearnerRank
from speech.families import ModelFamily, load_family
from speech.records import EncodedAudio
from tests.learner.rank_cases import Models, PolicyCase
from tests.learner.ranks import keep_gradients

CTC = 0.3
BLANK = 1


class PlainModel(nn.Module):
    """The parts as the family loads them, under the names that they have in a policy."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        family = load_family(model)
        assert isinstance(family, ModelFamily)
        self.language_model = family.load_language_model()
        self.adaptor, self.encoder, self.ctc = family.load_adaptor(), family.load_encoder(), family.ctc_head()

    def states(self, item: EncodedAudio) -> torch.Tensor:
        if item.features is None:
            assert item.encoder_states is not None
            return item.encoder_states
        (states,) = self.encoder([item.features])
        return states

    def logits(self, group: TrainGroup, sample: Sample, item: EncodedAudio) -> torch.Tensor:
        """(tokens, V) of each response token given what is before it."""
        layout = group.layout
        ids = torch.tensor([*layout.token_ids, *sample.token_ids])
        embeddings = self.language_model.get_input_embeddings()(ids)
        end = layout.audio_start + layout.audio_length
        sound = self.adaptor(self.states(item))
        embeddings = torch.cat([embeddings[: layout.audio_start], sound, embeddings[end:]])
        logits = self.language_model(inputs_embeds=embeddings[None]).logits[0]
        return logits[len(layout.token_ids) - 1 : -1]


def policy_gradient_loss(plain: PlainModel, groups: list[TrainGroup], audio: dict[int, EncodedAudio]) -> torch.Tensor:
    """−Σ A·log π per token of the batch: GRPO's gradient as long as the policy is the one that sampled."""
    terms, tokens = [], 0
    for group in groups:
        for sample in group.samples:
            logits = plain.logits(group, sample, audio[group.audio])
            logits[0, BLANK] = float("-inf")  # min_new_tokens
            chosen = torch.tensor(sample.token_ids)[:, None]
            terms.append(-sample.advantage * (logits / 0.9).log_softmax(1).gather(1, chosen).sum())
            tokens += len(sample.token_ids)
    return torch.stack(terms).sum() / tokens


def supervised_loss(plain: PlainModel, groups: list[TrainGroup], audio: dict[int, EncodedAudio]) -> torch.Tensor:
    """Cross-entropy per token with CTC beside it, of the whole batch."""
    terms, tokens = [], 0
    for group in groups:
        (sample,), item = group.samples, audio[group.audio]
        chosen = torch.tensor(sample.token_ids)[:, None]
        terms.append(-plain.logits(group, sample, item).log_softmax(1).gather(1, chosen).sum())
        frames = plain.ctc(plain.states(item)).log_softmax(1)
        lengths = torch.tensor(len(frames)), torch.tensor(len(item.ctc_ids))
        targets = torch.tensor(item.ctc_ids)
        terms.append(CTC * nn.functional.ctc_loss(frames, targets, *lengths, blank=BLANK, reduction="sum"))
        tokens += len(sample.token_ids)
    return torch.stack(terms).sum() / tokens


CASES = [
    (PolicyCase("grpo", ("adaptor",)), policy_gradient_loss),
    (PolicyCase("grpo", ("language_model", "adaptor")), policy_gradient_loss),
    (PolicyCase("sft", ("encoder",), settings={"ctc_weight": CTC}), supervised_loss),
    (PolicyCase("sft", ("language_model", "adaptor", "encoder"), settings={"ctc_weight": CTC}), supervised_loss),
]


@pytest.mark.parametrize(("case", "loss"), CASES, ids=["grpo-adaptor", "grpo-both", "sft-encoder", "sft-all"])
def test_gradients_and_updates_are_those_of_plain_modules(
    case: PolicyCase, loss: Any, sharp_checkpoint: Path, tmp_path: Path
) -> None:
    case.settings.update(max_grad_norm=0.0, weight_decay=0.1)
    groups, _, audio = case.batch(1)
    spec = case.spec(Models(sharp_checkpoint, sharp_checkpoint))
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    before = {name: p.detach().full_tensor().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]
    gradients = keep_gradients(learner.policy, learner.optimiser)
    learner.update(1, plan_updates(groups, [], 1, 1)[0], audio)
    after = {name: p.detach().full_tensor().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]
    learner.close()

    plain = PlainModel(sharp_checkpoint)
    for part, module in plain.named_children():
        module.requires_grad_(part in case.train or (part == "ctc" and case.objective == "sft"))
    parameters = dict(plain.named_parameters())
    assert all(torch.equal(before[name], parameters[name]) for name in before)
    loss(plain, groups, audio).backward()
    trained = [name for name, p in parameters.items() if p.requires_grad]
    assert gradients.keys() == set(trained)
    for name in trained:
        gradient = parameters[name].grad
        assert gradient is not None
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert max(float(gradients[name].abs().max()) for name in trained if not name.startswith("language")) > 1e-2

    adamw(plain, LearnerConfig(lr=spec.config.lr, weight_decay=0.1)).step()
    for name, weight in after.items():
        if name not in trained:
            assert torch.equal(weight, before[name]), f"{name} is frozen"
        else:  # AdamW makes a part of the learning rate of rounding in a tiny gradient
            torch.testing.assert_close(weight, parameters[name].detach(), rtol=0.0, atol=spec.config.lr / 2, msg=name)
            moved = (weight - before[name]).abs().mean()
            assert float((weight - parameters[name].detach()).abs().mean()) < 0.02 * float(moved), name
