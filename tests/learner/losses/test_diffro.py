"""DiffRO: rows and filter, gradients, and the objectives in a real learner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batches.batch import PackedBatch, Sample, TrainGroup
from learner.batches.packing import pack, totals
from learner.batches.plan import plan_updates
from learner.config import DiffROConfig, LossConfig
from learner.losses.diffro import DiffRO, choose_rows, speech_embeddings
from learner.losses.gumbel import conditional_noise, gumbel_noise, soft_one_hot
from learner.metrics import summarise_metrics
from learner.model.policy import PolicyOutput
from learner.rank import LearnerRank
from learner.spec import RankSpec
from learner.token2text.model import Token2Text, Token2TextConfig, Token2TextOutput
from speech.errors import UserError
from speech.records import PromptLayout
from tests.learner.ranks import assert_same_update, keep_gradients, run_ranks
from tests.learner.test_rank import make_spec

SPEECH = range(20, 60)
STOP = 1


def reward_model(attributes: bool = True) -> Token2Text:
    torch.manual_seed(4)
    classes = {"gender": ("female", "male")} if attributes else {}
    config = Token2TextConfig(len(SPEECH), tuple("abcd"), classes, hidden=16, layers=1, heads=2, kernel=3)
    return Token2Text(config)


def make_groups(count: int = 5, seed: int = 0) -> list[TrainGroup]:
    """Text prompts without audio; some samples better than others, some without a stop."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    groups = []
    for index in range(count):
        samples = []
        for place in range(3):
            finished = bool((index + place) % 3)
            speech = tuple(integer(SPEECH.start, SPEECH.stop) for _ in range(integer(3, 9)))
            tokens = (*speech, STOP) if finished else speech
            samples.append(Sample(tokens, (-2.0,) * len(tokens), (1.0, -0.5, 0.5)[place], finished))
        text = tuple(integer(1, 5) for _ in range(integer(1, 3)))
        layout = PromptLayout(tuple(integer(3, 20) for _ in range(integer(2, 6))), 0, 0)
        groups.append(TrainGroup(layout, tuple(samples), index, text, (index % 2,)))
    return groups


def fake_output(batch: PackedBatch, dtype: torch.dtype = torch.float64) -> PolicyOutput:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(len(batch.targets), 8, generator=generator, dtype=dtype, requires_grad=True)
    return output_of(hidden, torch.randn(64, 8, generator=generator, dtype=dtype))


def output_of(hidden: torch.Tensor, head: torch.Tensor) -> PolicyOutput:
    """A policy's output as far as DiffRO looks at it."""
    layer = torch.nn.Linear(*head.T.shape, bias=False)
    layer.weight = torch.nn.Parameter(head)
    nothing = torch.zeros(len(hidden), device=hidden.device)
    return PolicyOutput(nothing, nothing, [], hidden, layer)


def diffro(chunk: int = 1000, **changes: Any) -> DiffRO:
    return DiffRO(DiffROConfig(**changes), reward_model().double(), SPEECH, chunk, seed=3)


samples = st.builds(
    lambda speech, finished, advantage: Sample(
        (30,) * speech + (STOP,) * finished, (-1.0,) * (speech + finished), advantage, finished
    ),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([-1.0, 0.0, 0.7]),
).filter(lambda sample: sample.token_ids)


@settings(max_examples=60)
@given(st.lists(st.lists(samples, min_size=1, max_size=4), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_filter_and_rows(drawn: list[list[Sample]], positive: bool, shared: bool) -> None:
    groups = [TrainGroup(PromptLayout((3, 4), 0, 0), tuple(g), i, (1,)) for i, g in enumerate(drawn)]
    batch = pack(groups, shared)
    name = "positive" if positive else "none"
    chosen = choose_rows(batch, name, 0, 1)
    expected = [
        (i, j)
        for i, group in enumerate(groups)
        for j, s in enumerate(group.samples)
        if any(token != STOP for token in s.token_ids) and (not positive or (s.finished and s.advantage > 0))
    ]
    assert [(batch.members[s][0].audio, batch.members[s][1]) for s in chosen.samples] == expected
    assert all(batch.targets[chosen.rows] == 30), "speech only, never the stop token"
    assert sum(chosen.lengths) == len(chosen.rows)
    counts = totals(groups, name)
    assert (counts.chosen_samples, counts.chosen_labels) == (len(expected), len(expected))


def test_noise_follows_the_sample_not_the_packing() -> None:
    groups = make_groups()
    together = choose_rows(pack(groups), "none", 0, 1)
    apart = [choose_rows(pack([group], shared_prefix=False), "none", 0, 1) for group in reversed(groups)]
    assert torch.equal(together.keys, torch.cat([part.keys for part in reversed(apart)]))
    assert len(set(together.keys.tolist())) == len(together.keys)


@pytest.mark.parametrize("noise", ["fresh", "conditional"])
def test_chunks_do_not_matter(noise: str) -> None:
    batch = pack(make_groups())
    found = []
    for chunk in (1000, 7):
        output = fake_output(batch)
        loss, _ = diffro(chunk, noise=noise, attributes=0.5).loss(
            output, batch, totals(make_groups(), "positive"), 0.9, 2
        )
        found.append((loss, *torch.autograd.grad(loss, (output.hidden, output.head))))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-12, rtol=1e-9)
    assert float(found[0][1].abs().max()) > 1e-4


@pytest.mark.parametrize("noise", ["fresh", "conditional"])
def test_gradient_against_finite_differences(noise: str) -> None:
    """Straight-through is by definition the slope of the loss at the hard tokens times the slope of the soft ones."""
    groups = make_groups(2)
    batch = pack(groups)
    counts, term = totals(groups, "positive"), diffro(noise=noise)
    output = fake_output(batch)
    loss, _ = term.loss(output, batch, counts, 0.9, 1)
    gradient, head_gradient = torch.autograd.grad(loss, (output.hidden, output.head))

    chosen = choose_rows(batch, "positive", 3, 1)
    sampled = batch.targets[chosen.rows] - SPEECH.start
    table = term.reward_model.embedding.weight

    def logprobs(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return (hidden[chosen.rows] @ head[SPEECH.start : SPEECH.stop].T / 0.9).log_softmax(1)

    with torch.no_grad():
        start = logprobs(output.hidden, output.head)
        fixed = gumbel_noise(chosen.keys, len(SPEECH)).double()
        fixed = conditional_noise(start, fixed, sampled) if noise == "conditional" else fixed
        tokens = (start + fixed).argmax(1)
    assert torch.equal(tokens, sampled) == (noise == "conditional")
    hard = table[tokens].clone().requires_grad_()
    padded = torch.nn.utils.rnn.pad_sequence(list(hard.split(chosen.lengths)), batch_first=True)
    judged = term.reward_model(None, torch.tensor(chosen.lengths), embedded=padded)
    texts = [batch.members[s][0].text_ids for s in chosen.samples]
    at_hard = -judged.text_log_likelihood(texts).sum() / counts.chosen_labels
    assert float(at_hard.detach()) == pytest.approx(float(loss.detach()), abs=1e-12)
    (slope,) = torch.autograd.grad(at_hard, hard)

    @torch.no_grad()
    def value(hidden: torch.Tensor, head: torch.Tensor) -> float:
        return float((soft_one_hot(logprobs(hidden, head), fixed, 1.0) @ table * slope).sum())

    for tensor, found in ((output.hidden, gradient), (output.head, head_gradient)):
        for index in torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))[:40]:
            step = torch.zeros(tensor.numel(), dtype=torch.float64)
            step[index] = 1e-6
            step = step.view_as(tensor)
            ends = [
                value(output.hidden + s * step, output.head) if tensor is output.hidden
                else value(output.hidden, output.head + s * step)
                for s in (1, -1)
            ]  # fmt: skip
            assert float(found.flatten()[index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)


def test_impossible_texts_are_counted_and_change_nothing() -> None:
    """Speech that is too short for its text is neither rewarded nor does it weaken the reward of the others."""
    long = (1,) * 50
    groups = [*make_groups(2), replace(make_groups(3)[2], text_ids=long)]
    found = []
    for part in (groups[:2], groups):
        output = fake_output(pack(groups))
        rows = len(pack(part).targets)
        shown = output_of(output.hidden[:rows], output.head)
        loss, metrics = diffro(filter="none").loss(shown, pack(part), totals(part, "none"), 1.0, 1)
        found.append((loss, torch.autograd.grad(loss, output.hidden)[0], summarise_metrics(metrics)))
    (alone, slope, means), (beside, slope_beside, means_beside) = found
    torch.testing.assert_close(beside, alone)
    torch.testing.assert_close(slope_beside, slope)
    assert float(slope.abs().max()) > 1e-4
    for name in ("text_nll", "labels"):
        assert means_beside[name] == pytest.approx(means[name])
    assert (means["impossible"], means_beside["impossible"]) == (0, pytest.approx(3 / 9))


def test_only_impossible_texts_are_no_loss() -> None:
    groups = [replace(group, text_ids=(1,) * 50) for group in make_groups(2)]
    batch, output = pack(groups), fake_output(pack(groups))
    loss, metrics = diffro(filter="none", attributes=0.5).loss(output, batch, totals(groups, "none"), 1.0, 1)
    loss.backward()
    assert float(loss.detach()) > 0, "attributes have a loss all the same"
    assert output.hidden.grad is not None and bool(torch.isfinite(output.hidden.grad).all())
    means = summarise_metrics(metrics)
    assert means["impossible"] == 1 and "text_nll" not in means and means["attribute_nll"] > 0


@given(
    st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 3), min_size=1, max_size=9)), max_size=6),
    st.integers(1, 3),
)
def test_labels_are_counted_where_the_reward_model_finds_them_possible(
    drawn: list[tuple[int, list[int]]], labels_per_token: int
) -> None:
    groups = [
        TrainGroup(PromptLayout((3,), 0, 0), (Sample((30,) * speech, (), 1.0),), i, tuple(text))
        for i, (speech, text) in enumerate(drawn)
    ]
    frames = torch.tensor([speech * labels_per_token for speech, _ in drawn])
    judged = Token2TextOutput(torch.zeros(len(drawn), 1, 1), frames, (), torch.zeros(0))
    possible = judged.possible([text for _, text in drawn]).tolist()
    counts = totals(groups, "none", labels_per_token)
    assert counts.chosen_labels == sum(len(text) for (_, text), fits in zip(drawn, possible, strict=True) if fits)
    assert counts.chosen_samples == len(drawn)


def test_what_does_not_fit_is_refused() -> None:
    groups = make_groups(2)
    counts = totals(groups, "none")
    with pytest.raises(ValueError, match="without the text"):
        batch = pack([replace(group, text_ids=()) for group in groups])
        diffro(filter="none").loss(fake_output(batch), batch, counts, 1.0, 1)
    wrong = replace(groups[0], samples=(Sample((30, 5, STOP), (-1.0,) * 3, 1.0, True),))
    with pytest.raises(ValueError, match="neither speech nor stop"):
        diffro().loss(fake_output(pack([wrong])), pack([wrong]), counts, 1.0, 1)
    with pytest.raises(UserError, match="different codecs"):
        DiffRO(DiffROConfig(), reward_model(), range(20, 59), 10, 0)
    with pytest.raises(ValueError, match="unknown noise"):
        speech_embeddings(
            *torch.zeros(5, 2, 2), sampler_temperature=1.0, temperature=1.0, noise="no", chunk=1
        )  # fmt: skip


# -- in the learner ------------------------------------------------------------------------------------------------


def spec_for(model: Path, judge: Path, **changes: Any) -> RankSpec:
    term = {"reward_model": str(judge), "weight": 0.7, "attributes": 0.3}
    term |= {name: changes.pop(name) for name in list(changes) if hasattr(DiffROConfig, name)}
    fields: dict[str, Any] = {
        "objective": "combined",
        "allowed_token_ids": (STOP, *SPEECH),
        "speech_ids": SPEECH,
        "loss": LossConfig(kl_coef=changes.pop("kl_coef", 0.1), kl_estimator="full"),
        "diffro": DiffROConfig(**term),
    }
    return make_spec(model, **(fields | changes))


def one_update(rank: int, world: int, meeting: str, spec: RankSpec, out: str | None = None) -> dict[str, Any]:
    learner = LearnerRank(spec, rank, world, f"file://{meeting}")
    # An updated policy, so that KL is not 0.
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.mul_(1.1)
    gradients = keep_gradients(learner.policy, learner.optimiser)
    try:
        shares = plan_updates(make_groups(), [], 1, world, spec.config.diffro.filter)[rank]
        metrics = learner.update(2, shares, {}).metrics
    finally:
        learner.close()
    found = {"gradients": gradients, "metrics": metrics}
    if out and rank == 0:
        torch.save(found, out)
    return found


def test_micro_batches_and_ranks_do_not_matter(sharp_checkpoint: Path, token2text_judge: Path, tmp_path: Path) -> None:
    whole = one_update(0, 1, str(tmp_path / "a"), spec_for(sharp_checkpoint, token2text_judge))
    assert whole["metrics"]["diffro/samples"] == 6
    assert whole["metrics"]["diffro/text_nll"] > 0 and whole["metrics"]["learner/full_kl"] > 1e-4
    assert max(float(g.abs().max()) for g in whole["gradients"].values()) > 1e-3
    parts = one_update(
        0, 1, str(tmp_path / "b"), spec_for(sharp_checkpoint, token2text_judge, micro_batch_tokens=20, logits_chunk=5)
    )
    assert_same_update(whole, parts, rtol=1e-5)
    out = tmp_path / "two"
    run_ranks(
        one_update,
        2,
        2,
        str(tmp_path / "c"),
        spec_for(sharp_checkpoint, token2text_judge, micro_batch_tokens=30),
        str(out),
    )
    assert_same_update(whole, torch.load(out, weights_only=True), rtol=1e-5)


def test_combined_without_diffro_is_grpo(sharp_checkpoint: Path, token2text_judge: Path, tmp_path: Path) -> None:
    grpo = one_update(
        0, 1, str(tmp_path / "a"), spec_for(sharp_checkpoint, token2text_judge, objective="grpo", kl_coef=0.0)
    )
    none = {"weight": 0.0, "kl_coef": 0.0, "reward_model": None}
    combined = one_update(0, 1, str(tmp_path / "b"), spec_for(sharp_checkpoint, token2text_judge, **none))
    for name, gradient in grpo["gradients"].items():
        assert torch.equal(combined["gradients"][name], gradient), name
    assert combined["metrics"] == grpo["metrics"]


def test_combined_is_the_sum_of_its_terms(sharp_checkpoint: Path, token2text_judge: Path, tmp_path: Path) -> None:
    spec = {"max_grad_norm": 0.0}
    grpo = one_update(
        0, 1, str(tmp_path / "a"), spec_for(sharp_checkpoint, token2text_judge, objective="grpo", kl_coef=0.0, **spec)
    )
    alone = one_update(
        0, 1, str(tmp_path / "b"), spec_for(sharp_checkpoint, token2text_judge, objective="diffro", **spec)
    )
    both = one_update(0, 1, str(tmp_path / "c"), spec_for(sharp_checkpoint, token2text_judge, **spec))
    for name, gradient in both["gradients"].items():
        expected = grpo["gradients"][name] + alone["gradients"][name]
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=name)


def test_diffro_needs_a_reward_model(sharp_checkpoint: Path, token2text_judge: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the folder of a Token2Text model"):
        try:
            LearnerRank(
                spec_for(sharp_checkpoint, token2text_judge, reward_model=None), 0, 1, f"file://{tmp_path / 'a'}"
            )
        finally:
            torch.distributed.destroy_process_group()
