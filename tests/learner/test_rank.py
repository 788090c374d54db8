"""The real learner: FSDP2 on gloo, one and two ranks, against each other."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from learner.batches.batch import Sample, TrainGroup
from learner.batches.plan import audio_of, plan_updates
from learner.config import LearnerConfig, LossConfig
from learner.rank import LearnerRank
from learner.spec import RankSpec
from speech.families import load_family
from speech.records import EncodedAudio, PromptLayout
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.ranks import assert_same_update, keep_gradients, run_ranks

VOCABULARY = 262


def make_spec(model: Path, **changes: Any) -> RankSpec:
    config = LearnerConfig(threads=1, lr=1e-3, loss=LossConfig(kl_coef=0.05))
    for key in [k for k in changes if hasattr(config, k)]:
        setattr(config, key, changes.pop(key))
    fields: dict[str, Any] = {
        "model": str(model),
        "family": None,
        "objective": "grpo",
        "config": config,
        "temperature": 0.9,
        "min_new_tokens": 1,
        "stop_ids": (1,),
        "total_steps": 10,
        "replay_weight": 0.5,
        "seed": 3,
    }
    return RankSpec(**(fields | changes))


def make_batch(groups: int = 5, seed: int = 0) -> tuple[list[TrainGroup], dict[int, EncodedAudio]]:
    """Groups of unequal sizes with random tokens, and their "encoded audio"."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    train, audio = [], {}
    for index in range(groups):
        length = integer(4, 12)
        layout = PromptLayout((3, *[2] * length, 4, 5), 1, length)
        embeddings = torch.randn(length, 64, generator=generator)
        audio[index] = EncodedAudio(layout, embeddings, None, 1.0, 0.5)
        samples = []
        for _ in range(3):
            tokens = (*(integer(6, VOCABULARY) for _ in range(integer(1, 7))), 1)
            logprobs = tuple(-float(torch.rand((), generator=generator)) * 8 for _ in tokens)
            samples.append(Sample(tokens, logprobs, float(torch.randn((), generator=generator))))
        train.append(TrainGroup(layout, tuple(samples), index))
    return train, audio


PRECISIONS = ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16))


def run_rank(rank: int, world: int, meeting: str, spec: RankSpec, out: str) -> None:
    """One process: an update on the shared batch; rank 0 stores gradients, metrics and new weights."""
    learner = LearnerRank(spec, rank, world, f"file://{meeting}")
    groups, audio = make_batch()
    replay, _ = make_batch(2, seed=9) if spec.objective == "grpo" else ([], {})
    replay = [TrainGroup(g.layout, g.samples[:1], g.audio) for g in replay]
    audio = {**audio}
    for group in replay:
        audio[group.audio + 100] = EncodedAudio(group.layout, torch.ones(group.layout.audio_length, 64), None, 1, 1)
    replay = [TrainGroup(g.layout, g.samples, g.audio + 100) for g in replay]
    gradients = keep_gradients(learner.policy, learner.optimiser)
    shares = plan_updates(groups, replay, spec.config.updates_per_step, world)[rank]
    mine = {index: audio[index] for index in audio_of(shares)}
    result = learner.update(1, shares, mine)
    probe = [learner.probe_logprobs([[7, 8], [7, 8, 9, 10]], published, compute) for published, compute in PRECISIONS]
    buckets = list(learner.weight_buckets(torch.float32, 10_000))
    if rank == 0:
        weights = {name: tensor for bucket in buckets for name, tensor in bucket.tensors.items()}
        torch.save(
            {
                "gradients": gradients,
                "metrics": result.metrics,
                "gaps": result.sample_gaps,
                "weights": weights,
                "probe": probe,
            },
            out,
        )
    learner.close()


def run(tmp_path: Path, spec: RankSpec, world: int = 1) -> dict[str, Any]:
    name = f"{len(list(tmp_path.iterdir()))}"
    out = tmp_path / f"out-{name}"
    run_ranks(run_rank, world, world, str(tmp_path / f"meet-{name}"), spec, str(out))
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_checkpoint(tmp_path_factory.mktemp("rank") / "model", scale=2.0)


@pytest.fixture(scope="module")
def one_rank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("one"), make_spec(model))


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert_same_update(a, b, rtol=1e-5)
    assert max(float(g.abs().max()) for g in a["gradients"].values()) > 1e-3
    for index, gaps in a["gaps"].items():
        assert b["gaps"][index] == pytest.approx(gaps, abs=1e-5)


def test_two_ranks_equal_one(model: Path, one_rank: dict[str, Any], tmp_path: Path) -> None:
    assert_same(one_rank, run(tmp_path, make_spec(model), world=2))


def test_micro_batches_do_not_matter(model: Path, one_rank: dict[str, Any], tmp_path: Path) -> None:
    assert_same(one_rank, run(tmp_path, make_spec(model, micro_batch_tokens=30)))


def test_published_weights_are_the_updated_policy(model: Path, one_rank: dict[str, Any]) -> None:
    language_model = load_family(model).load_language_model()
    start = dict(language_model.named_parameters())
    assert one_rank["weights"].keys() == start.keys(), "a tied lm_head must not be sent twice"
    moved = [name for name, tensor in one_rank["weights"].items() if not torch.equal(tensor, start[name])]
    assert moved
    language_model.load_state_dict(one_rank["weights"], strict=False)
    with torch.no_grad():
        logits = language_model(torch.tensor([[7, 8, 9, 10]])).logits[0, :-1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor([[8], [9], [10]]))[:, 0].tolist()
    assert one_rank["probe"][0] == pytest.approx([*expected[:1], *expected], abs=1e-5)


def test_probes_say_what_an_engine_in_half_precision_would(model: Path, one_rank: dict[str, Any]) -> None:
    """The weights rounded, and then computed with in float32 or in bfloat16."""
    for found, (published, compute) in zip(one_rank["probe"], PRECISIONS, strict=True):
        language_model = load_family(model).load_language_model()
        rounded = {name: tensor.to(published) for name, tensor in one_rank["weights"].items()}
        language_model.load_state_dict(rounded, strict=False)
        for parameter in language_model.parameters():  # buffers stay in float32, as in the engine
            parameter.data = parameter.data.to(compute)
        with torch.no_grad():
            logits = language_model(torch.tensor([[7, 8, 9, 10]])).logits[0, :-1].float().log_softmax(-1)
        expected = logits.gather(1, torch.tensor([[8], [9], [10]]))[:, 0].tolist()
        assert found[1:] == pytest.approx(expected, abs=1e-5 if compute == torch.float32 else 0.05)
    exact, half, halved = (torch.tensor(found) for found in one_rank["probe"])
    assert min(float((half - exact).abs().mean()), float((halved - half).abs().mean())) > 1e-4


def test_learning_rate_zero_changes_nothing(model: Path, tmp_path: Path) -> None:
    result = run(tmp_path, make_spec(model, lr=0.0, weight_decay=0.1))
    for name, parameter in load_family(model).load_language_model().named_parameters():
        assert torch.equal(result["weights"][name], parameter), name


def test_several_updates_use_the_ratio(model: Path, tmp_path: Path) -> None:
    spec = make_spec(model, updates_per_step=2, lr=3e-2)
    result = run(tmp_path, spec, world=2)
    clipped = result["metrics"]["learner/clipped_low"] + result["metrics"]["learner/clipped_high"]
    assert clipped > 0, "the second update's policy differs from the one before the first"


def test_utterance_without_encoder_states_is_refused(model: Path, tmp_path: Path) -> None:
    spec = make_spec(model, train=["language_model", "adaptor"])
    with pytest.raises(Exception, match="lacks encoder states"):
        run(tmp_path, spec)


def test_reference_keeps_its_own_adaptor(model: Path, tmp_path: Path) -> None:
    """An update of the adaptor alone must show in the KL: the embeddings sent along are the trained adaptor's."""
    spec = make_spec(model, train=["adaptor"], lr=3e-2)
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    adaptor = load_family(model).load_adaptor()
    groups, audio = make_batch()

    def encoded() -> dict[int, EncodedAudio]:
        generator = torch.Generator().manual_seed(5)
        found = {}
        for index, item in audio.items():
            frames = 2 * item.layout.audio_length
            states = torch.randn(frames, 32, generator=generator)
            with torch.no_grad():
                found[index] = EncodedAudio(item.layout, adaptor(states), states, 1.0, 0.5)
        return found

    shares = plan_updates(groups, [], 1, 1)[0]
    kl = [learner.update(1, shares, encoded()).metrics["learner/kl"]]
    adaptor.load_state_dict(learner.frontend_weights()["adaptor"].tensors)
    kl.append(learner.update(2, shares, encoded()).metrics["learner/kl"])
    learner.close()
    assert kl[0] == pytest.approx(0.0, abs=1e-7)
    assert kl[1] > 1e-4


def test_sampling_mask_reaches_the_loss(model: Path, tmp_path: Path) -> None:
    groups, audio = make_batch()
    shares = plan_updates(groups, [], 1, 1)[0]

    def entropy(name: str, allowed: tuple[int, ...] | None) -> float:
        learner = LearnerRank(make_spec(model, allowed_token_ids=allowed), 0, 1, f"file://{tmp_path / name}")
        try:
            return learner.update(1, shares, audio).metrics["learner/entropy"]
        finally:
            learner.close()

    free = entropy("a", None)
    assert entropy("b", tuple(range(VOCABULARY))) == free
    assert entropy("c", (1, *range(6, VOCABULARY))) < free
    with pytest.raises(ValueError, match="not among the allowed tokens"):
        entropy("d", (1, 6, 7))


def test_weight_buckets_hold_everything_once(model: Path, tmp_path: Path) -> None:
    """Whatever their size: of one byte, exactly of the first tensors, of everything, and more."""
    learner = LearnerRank(make_spec(model), 0, 1, f"file://{tmp_path / 'meet'}")
    whole = [p.detach().full_tensor() for p in learner.policy.language_model.parameters()]  # type: ignore[operator]
    sizes = [4 * tensor.numel() for tensor in whole]
    for limit in (1, sizes[0], sum(sizes[:3]), sum(sizes[:-1]), sum(sizes), 2**30):
        buckets = [list(bucket.tensors.values()) for bucket in learner.weight_buckets(torch.float32, limit)]
        assert all(buckets), "no bucket is empty"
        assert all(torch.equal(a, b) for a, b in zip(chain(*buckets), whole, strict=True))
        for bucket in buckets[:-1]:
            size = 4 * sum(tensor.numel() for tensor in bucket)
            assert limit <= size and size - 4 * bucket[-1].numel() < limit
    learner.close()


def test_updates_leave_no_hooks_behind(model: Path, tmp_path: Path) -> None:
    learner = LearnerRank(make_spec(model, micro_batch_tokens=30), 0, 1, f"file://{tmp_path / 'meet'}")
    groups, audio = make_batch()
    learner.update(1, plan_updates(groups, [], 1, 1)[0], audio)
    for module in learner.policy.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    assert not any(parameter._backward_hooks for parameter in learner.policy.parameters())
    learner.close()


def test_frozen_parts_are_not_loaded(model: Path) -> None:
    from learner.model.policy import Policy

    policy = Policy.load(load_family(model), ["language_model"], torch.float32)
    assert policy.adaptor is None and policy.encoder is None
    assert not policy.training and not any(module.training for module in policy.modules())
