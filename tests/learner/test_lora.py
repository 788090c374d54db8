"""LoRA by peft's layers under FSDP2: what learns, what is published, saved and exported; nothing else moves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.func import functional_call

from learner.batches.plan import audio_of, plan_updates
from learner.config import LoraConfig, LossConfig
from learner.model.lora import changes, inject, plain_weights, switched_off
from learner.model.policy import Policy
from learner.rank import LearnerRank
from speech.errors import UserError
from speech.families import load_family
from speech.families.checkpoint import LowRank
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.rank_cases import Models, PolicyCase
from tests.learner.ranks import keep_gradients
from tests.learner.test_front_parts import PlainModel, policy_gradient_loss
from tests.learner.test_rank import make_spec, run
from tests.learner.test_rank_matrix import compare
from tests.speech.families.hearing_checkpoints import CASES as HEARING_CASES
from tests.speech.families.hearing_checkpoints import wave
from tests.speech.families.tts_checkpoints import OPTIONS, WRITERS

peft = pytest.importorskip("peft", reason="the extra `lora` is not installed")

LORA = LoraConfig(rank=4, alpha=6)
HEARING = ("language_model", "adaptor")
PROBE = [[7, 8], [7, 8, 9, 10]]

CASES = {
    "grpo": PolicyCase("grpo", settings={"lora": LORA, "loss": LossConfig(kl_coef=0.1)}),
    "grpo-adaptor-silent": PolicyCase("grpo", HEARING, silent=(0, 3), settings={"lora": LORA}),
    "grpo-adaptor-alone-silent": PolicyCase("grpo", ("adaptor",), silent=(0, 3), settings={"lora": LORA}),
    "grpo-silent-checkpointing": PolicyCase(
        "grpo", silent=(1,), settings={"lora": LORA, "activation_checkpointing": True, "updates_per_step": 2}
    ),
    "combined": PolicyCase("combined", settings={"lora": LORA}),
    "sft-encoder-ctc": PolicyCase("sft", (*HEARING, "encoder"), settings={"lora": LORA, "ctc_weight": 0.3}),
}


@pytest.fixture(scope="module")
def models(sharp_checkpoint: Path, token2text_judge: Path) -> Models:
    return Models(sharp_checkpoint, token2text_judge)


@contextmanager
def running(case: PolicyCase, models: Models, folder: Path) -> Iterator[LearnerRank]:
    """One rank."""
    learner = LearnerRank(case.spec(models), 0, 1, f"file://{folder / f'meet-{len(list(folder.iterdir()))}'}")
    try:
        yield learner
    finally:
        learner.close()


def update(learner: LearnerRank, case: PolicyCase, step: int = 1) -> dict[str, float]:
    groups, replay, audio = case.batch(step)
    chosen = learner.spec.config.diffro.filter if learner.diffro else None
    shares = plan_updates(groups, replay, learner.spec.config.updates_per_step, 1, chosen)[0]
    return learner.update(step, shares, {index: audio[index] for index in audio_of(shares)}).metrics


def parameters(learner: LearnerRank) -> dict[str, torch.Tensor]:
    return {name: p.detach().full_tensor().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]


def published(learner: LearnerRank) -> dict[str, torch.Tensor]:
    return {n: t for bucket in learner.weight_buckets(torch.float32, 10_000) for n, t in bucket.tensors.items()}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[7, 8, 9, 10, 42]])).logits


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_do_not_matter(ranks: int, models: Models, tmp_path: Path) -> None:
    fast = ["grpo", "grpo-adaptor-silent"] if ranks == 3 else list(CASES)
    compare({name: CASES[name] for name in fast}, models, ranks, tmp_path)


def test_ranks_do_not_matter_to_adapters_in_upper_layers(tmp_path: Path) -> None:
    """One rank has audio and the other none, whose embeddings begin a graph of their own."""
    models = Models(write_demo_checkpoint(tmp_path / "model", scale=2.0, layers=4), tmp_path)
    case = PolicyCase("grpo", silent=(1,), settings={"lora": replace(LORA, targets=["layers.3.mlp.down_proj"])})
    compare({"upper": case}, models, 2, tmp_path)


def test_a_policy_begins_as_the_model_that_it_is_built_on(models: Models, tmp_path: Path) -> None:
    full = replace(CASES["grpo"], settings={"loss": LossConfig(kl_coef=0.1)})
    with running(full, models, tmp_path) as learner:
        expected = published(learner), learner.probe_logprobs(PROBE, torch.bfloat16, torch.float32)
        entropy = update(learner, full)["learner/entropy"]
    with running(CASES["grpo"], models, tmp_path) as learner:
        begun = published(learner), learner.probe_logprobs(PROBE, torch.bfloat16, torch.float32)
        metrics = update(learner, CASES["grpo"])
    assert begun[1] == expected[1] and list(begun[0]) == list(expected[0])
    assert all(torch.equal(begun[0][name], tensor) for name, tensor in expected[0].items())
    assert metrics["learner/entropy"] == entropy and metrics["learner/kl"] == 0.0


@pytest.mark.parametrize("name", ["grpo", "grpo-adaptor-silent", "sft", "combined", "diffro"])
def test_only_adapters_learn(name: str, models: Models, tmp_path: Path) -> None:
    case = CASES.get(name) or PolicyCase(name, settings={"lora": LORA})
    with running(case, models, tmp_path) as learner:
        before = parameters(learner)
        update(learner, case)
        after = parameters(learner)
        held = {name for name, p in learner.policy.named_parameters() if p in learner.optimiser.state}
    adapters = {name for name in before if "lora_" in name}
    assert held == adapters
    # Two layers of seven linear layers, and two of the adaptor.
    assert len(adapters) == 2 * (2 * 7 + (2 if "adaptor" in case.train else 0))
    for parameter, tensor in before.items():
        moved = not torch.equal(after[parameter], tensor)
        # A has no gradient as long as B is 0, and may stay.
        assert moved == ("lora_B" in parameter) or "lora_A" in parameter, parameter


def test_gradients_are_those_of_the_plain_parametrisation(models: Models, tmp_path: Path) -> None:
    """Of A and B in W + (α/r)·B·A, by autograd on plain modules, one sample at a time."""
    case = PolicyCase("grpo", HEARING, settings={"lora": LORA, "max_grad_norm": 0.0})
    groups, _, audio = case.batch(1)
    with running(case, models, tmp_path) as learner:
        randomise(learner)
        start = parameters(learner)
        gradients = keep_gradients(learner.policy, learner.optimiser)
        update(learner, case)
    plain = PlainModel(models.policy)
    adapters = {n: t.requires_grad_() for n, t in start.items() if "lora_" in n}
    merged = {f"plain.{name}": tensor.detach() for name, tensor in plain.named_parameters()}
    for name in [name for name in adapters if "lora_A" in name]:
        layer = name.removesuffix(".lora_A.default.weight")
        product = adapters[f"{layer}.lora_B.default.weight"] @ adapters[name]
        merged[f"plain.{layer}.weight"] = merged[f"plain.{layer}.weight"] + 1.5 * product
    functional_call(_Loss(plain), merged, (groups, audio)).backward()
    assert gradients.keys() == adapters.keys()
    for name, tensor in adapters.items():
        torch.testing.assert_close(gradients[name], tensor.grad, rtol=1e-3, atol=1e-5, msg=name)
        assert float(gradients[name].abs().max()) > 1e-4, name


class _Loss(nn.Module):
    def __init__(self, plain: PlainModel) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, groups: Any, audio: Any) -> torch.Tensor:
        return policy_gradient_loss(self.plain, groups, audio)


def randomise(learner: LearnerRank) -> None:
    """Adapters far from 0, so that what they add shows."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in learner.policy.named_parameters():
            if "lora_" in name:
                local = parameter.to_local()  # type: ignore[attr-defined]
                local.copy_(0.1 * torch.randn(local.shape, generator=generator))


def test_published_weights_compute_what_the_policy_computes(models: Models, tmp_path: Path) -> None:
    """In packed rows with shared prefixes, where the policy adds B·A·x and the engines' weights hold B·A."""
    case = replace(CASES["grpo"], train=HEARING)
    groups, _, audio = case.batch(1)
    with running(case, models, tmp_path) as learner:
        randomise(learner)
        weights, front = published(learner), learner.frontend_weights()["adaptor"].tensors
        contexts = learner._prepare(plan_updates(groups, [], 1, 1)[0][0], audio, several=True)
        found = torch.cat([context.old_logprobs for context in contexts])  # type: ignore[misc]
        probe = learner.probe_logprobs(PROBE, torch.float32, torch.float32)
    plain = PlainModel(models.policy)
    assert weights.keys() == dict(plain.language_model.named_parameters()).keys()
    assert front.keys() == dict(plain.adaptor.named_parameters()).keys()
    base = logits(plain.language_model)
    plain.language_model.load_state_dict(weights, strict=False)
    plain.adaptor.load_state_dict(front)
    assert float((logits(plain.language_model) - base).abs().max()) > 0.1
    expected = []
    with torch.no_grad():
        for group in groups:
            for sample in group.samples:
                rows = plain.logits(group, sample, audio[group.audio]) / learner.spec.temperature
                rows[0, list(learner.spec.stop_ids)] = float("-inf")  # min_new_tokens: 1
                chosen = torch.tensor(sample.token_ids)[:, None]
                expected.append(rows.log_softmax(1).gather(1, chosen)[:, 0])
        said = logits_of_probe(plain.language_model)
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)
    assert probe == pytest.approx(said, abs=1e-4)


def logits_of_probe(model: nn.Module) -> list[float]:
    found = []
    for ids in PROBE:
        rows = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        found += rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return found


def test_ranks_publish_the_same_weights_and_probes(models: Models, tmp_path: Path) -> None:
    """Merged from shards, on three ranks of unequal ones."""
    spec = make_spec(models.policy, lora=LORA, lr=3e-2)
    one, three = run(tmp_path, spec), run(tmp_path, spec, world=3)
    assert three["weights"].keys() == one["weights"].keys()
    base = dict(load_family(models.policy).load_language_model().named_parameters())
    for name, tensor in one["weights"].items():
        adapted = name.endswith("proj.weight")
        # AdamW makes a part of the learning rate of rounding in a tiny gradient.
        torch.testing.assert_close(three["weights"][name], tensor, rtol=0, atol=1e-2 if adapted else 0, msg=name)
        assert torch.equal(tensor, base[name]) != adapted, name
        if adapted:
            moved = float((tensor - base[name].detach()).abs().mean())
            assert float((three["weights"][name] - tensor).abs().mean()) < 0.01 * moved, name
    for ours, theirs in zip(one["probe"], three["probe"], strict=True):
        assert theirs == pytest.approx(ours, abs=0.05)


@pytest.mark.parametrize("estimator", ["k3", "full"])
def test_the_reference_is_the_policy_without_adapters(estimator: str, models: Models, tmp_path: Path) -> None:
    """Its log-probs and the loss are those with a reference that is a second model."""
    case = PolicyCase("grpo", HEARING, settings={"lora": LORA, "loss": LossConfig(kl_coef=0.1, kl_estimator=estimator)})
    groups, _, audio = case.batch(1)
    found = []
    for second in (False, True):
        with running(case, models, tmp_path) as learner:
            assert learner.reference is None, "no second copy"
            randomise(learner)
            if second:
                config, learner.spec.config.lora = learner.spec.config.lora, None
                learner.reference = learner._load(frozen=True)
                learner.spec.config.lora = config
            contexts = learner._prepare(plan_updates(groups, [], 1, 1)[0][0], audio, several=True)
            references = torch.cat([context.reference.logprobs for context in contexts])  # type: ignore[union-attr]
            current = torch.cat([context.old_logprobs for context in contexts])  # type: ignore[misc]
            assert float((references - current).abs().max()) > 0.1
            found.append((references, [update(learner, case, step) for step in (1, 2)], parameters(learner)))
    (ours, metrics, weights), (theirs, expected, others) = found
    assert torch.equal(ours, theirs) and metrics == expected and metrics[0]["learner/kl"] > 1e-3
    assert all(torch.equal(weights[name], tensor) for name, tensor in others.items())


def test_checkpoints_hold_adapters_alone_and_resume_to_the_bit(models: Models, tmp_path: Path) -> None:
    case = CASES["grpo-adaptor-silent"]
    with running(case, models, tmp_path) as learner:
        update(learner, case, 1)
        learner.save(str(tmp_path / "checkpoint"), background=True)
        learner.writer.wait()
        update(learner, case, 2)
        expected = parameters(learner)
    stored = FileSystemReader(tmp_path / "checkpoint" / "dcp").read_metadata().state_dict_metadata
    weights = {name for name in stored if name.startswith("policy.")}
    assert weights == {f"policy.{name}" for name in expected if "lora_" in name}
    assert not [name for name in stored if "optimiser.state" in name and "lora_" not in name]
    with running(case, models, tmp_path) as learner:
        update(learner, case, 7)
        learner.load(str(tmp_path / "checkpoint"))
        update(learner, case, 2)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in parameters(learner).items())


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_exports_are_merged_and_an_adapter_that_peft_loads(
    scale: float, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = PolicyCase("grpo", HEARING, settings={"lora": replace(LORA, scale=scale)})
    with running(case, models, tmp_path) as learner:
        update(learner, case)
        randomise(learner)
        export, given = learner.family.export, []

        def noted(path: Path, states: Mapping[str, Mapping[str, Any]]) -> None:
            given.extend(change for own in states.values() for change in own.values())
            export(path, states)

        monkeypatch.setattr(learner.family, "export", noted)
        learner.save(str(tmp_path / "checkpoint"))
        assert len(given) == 16 and all(isinstance(change, LowRank) for change in given), "no whole tensor is held"
        weights, front = published(learner), learner.frontend_weights()["adaptor"].tensors
    exported = load_family(tmp_path / "checkpoint" / "hf")
    base = load_family(models.policy)
    merged = exported.load_language_model()
    if scale == 1.0:
        assert all(torch.allclose(p, weights[name], atol=1e-6) for name, p in merged.named_parameters())
        assert all(torch.allclose(p, front[n], atol=1e-6) for n, p in exported.load_adaptor().named_parameters())
    before, after = logits(base.load_language_model()), logits(merged)
    folder = tmp_path / "checkpoint" / "hf" / "adapter"
    loaded = peft.PeftModel.from_pretrained(base.load_language_model(), folder)
    torch.testing.assert_close(logits(loaded), after, rtol=1e-5, atol=1e-5)
    assert float((after - before).abs().max()) > 0.05
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(4))
    adaptor = nn.ModuleDict({"adaptor": base.load_adaptor()})
    adaptor = peft.PeftModel.from_pretrained(adaptor, folder / "adaptor").base_model.model["adaptor"]
    with torch.no_grad():
        torch.testing.assert_close(adaptor(states), exported.load_adaptor()(states), rtol=1e-5, atol=1e-5)
        assert float((adaptor(states) - base.load_adaptor()(states)).abs().max()) > 1e-3
    states_of_base = base.load_encoder().state_dict()
    assert all(torch.equal(t, states_of_base[n]) for n, t in exported.load_encoder().state_dict().items())


def test_the_adapter_alone_is_what_peft_loads(models: Models, tmp_path: Path) -> None:
    case = PolicyCase("sft", settings={"lora": replace(LORA, targets=["q_proj", "layers.1.mlp.down_proj"])})
    with running(case, models, tmp_path) as learner:
        randomise(learner)
        tensors, config = learner.adapter()
        weights = published(learner)
    assert tensors.keys() == {
        f"base_model.model.model.layers.{layer}.lora_{k}.weight"
        for layer in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.down_proj")
        for k in "AB"
    }
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.is_cpu for t in tensors.values())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    loaded = peft.PeftModel.from_pretrained(load_family(models.policy).load_language_model(), tmp_path / "adapter")
    merged = load_family(models.policy).load_language_model()
    merged.load_state_dict(weights, strict=False)
    torch.testing.assert_close(logits(loaded), logits(merged), rtol=1e-5, atol=1e-5)
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("name", [*HEARING_CASES, *WRITERS])
def test_models_of_all_families_take_adapters(name: str, tmp_path: Path) -> None:
    """Their outputs with adapters are those of the export, and without them those of the checkpoint."""
    hears = name in HEARING_CASES
    write: Any = HEARING_CASES[name].write if hears else WRITERS[name]
    family: Any = load_family(write(tmp_path / "model"), options=OPTIONS.get(name))
    train = HEARING if hears else ("language_model",)
    policy = Policy.load(family, train, torch.float32)
    ids, states = torch.tensor([[5, 6, 7, 8]]), None
    if hears:
        encoder = family.load_encoder()
        with torch.no_grad():
            [states] = encoder([encoder.features(wave(1.37))])

    @torch.no_grad()
    def outputs(model: Any, adaptor: Any) -> list[torch.Tensor]:
        model.set_attn_implementation("sdpa")
        said = model(ids).logits
        return [said] if adaptor is None else [said, adaptor(states)]

    before = outputs(policy.language_model, policy.adaptor)
    plain = [name for name, _ in policy.named_parameters()]
    inject(policy, LORA, train, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(outputs(policy.language_model, policy.adaptor), before, strict=True))
    assert [name for name, _ in plain_weights(list(policy.named_parameters()), LORA)] == plain
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        assert trained and all("lora_" in name for name in trained)
        for parameter in trained.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    after = outputs(policy.language_model, policy.adaptor)
    with switched_off(policy):
        off = outputs(policy.language_model, policy.adaptor)
    assert all(torch.equal(a, b) for a, b in zip(off, before, strict=True))
    merged: dict[str, dict[str, Any]] = {part: {} for part in train}
    for parameter_name, change in changes(trained, LORA.factor).items():
        part, _, inner = parameter_name.partition(".")
        merged[part][inner] = change
    family.export(tmp_path / "export", merged)
    exported: Any = load_family(tmp_path / "export", options=OPTIONS.get(name))
    adaptor = exported.load_adaptor() if hears else None
    rounded = torch.bfloat16 in {t.dtype for t in load_file(tmp_path / "export" / "model.safetensors").values()}
    for new, learned, old in zip(outputs(exported.load_language_model(), adaptor), after, before, strict=True):
        assert float((learned - old).abs().max()) > 1e-2
        torch.testing.assert_close(new, learned, rtol=1e-3, atol=0.05 if rounded else 1e-3)


def test_what_cannot_be_adapted_is_said(
    sharp_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraConfig(targets=["q_proj", "lm_head"])
    with pytest.raises(UserError, match=r"no linear layer is named lm_head; there are down_proj, .*, v_proj"):
        LearnerRank(make_spec(sharp_checkpoint, lora=lora), 0, 1, f"file://{tmp_path / 'meet'}")
    torch.distributed.destroy_process_group()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft: pip install 'speechrl\[lora\]'"):
        LearnerRank(make_spec(sharp_checkpoint, lora=LORA), 0, 1, f"file://{tmp_path / 'other'}")
    torch.distributed.destroy_process_group()
    plain = running(PolicyCase("sft"), Models(sharp_checkpoint, sharp_checkpoint), tmp_path)
    with plain as learner, pytest.raises(ValueError, match="has no adapter"):
        learner.adapter()
