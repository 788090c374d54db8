"""On-policy distillation: a loop in plain transformers, what it does to a student, and what cannot teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import totals
from learner.batches.plan import plan_updates
from learner.config import DistillationConfig, LossConfig
from learner.losses.distillation import check_teacher, needs_teacher, teacher_family
from learner.model.policy import Policy
from learner.rank import LearnerRank
from learner.spec import RankSpec
from speech.errors import UserError
from speech.families import load_family
from speech.records import EncodedAudio, PromptLayout
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.ranks import assert_streamed_as_whole, keep_gradients
from tests.learner.test_rank import VOCABULARY, assert_same, make_batch, make_spec, run
from tests.speech.families.tts_checkpoints import SHAPE, write_llasa

WEIGHT = 0.7


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student and its teacher: the same front, other weights."""
    folder = tmp_path_factory.mktemp("distillation")
    student = write_demo_checkpoint(folder / "student", scale=2.0)
    return student, write_demo_checkpoint(folder / "teacher", scale=2.0, seed=1)


def distilled(models: tuple[Path, Path], estimator: str = "full", **changes: Any) -> RankSpec:
    teacher = DistillationConfig(str(models[1]), WEIGHT)
    loss = changes.pop("loss", LossConfig(kl_estimator=estimator))  # type: ignore[arg-type]
    return make_spec(models[0], **({"loss": loss, "distillation": teacher, "max_grad_norm": 0.0} | changes))


def processed(model: torch.nn.Module, embeddings: torch.Tensor, first: int, steps: int, spec: RankSpec) -> torch.Tensor:
    """Log-probs (steps, V) of plain transformers after the sampler's mask and temperature."""
    logits = model(inputs_embeds=embeddings[None]).logits[0, first - 1 : first - 1 + steps]
    early = torch.zeros_like(logits)
    early[: spec.min_new_tokens, list(spec.stop_ids)] = float("-inf")
    return ((logits + early) / spec.temperature).log_softmax(-1)


@pytest.mark.parametrize("estimator", ["full", "k1", "k2"])
@pytest.mark.parametrize("rewarded", [False, True])
def test_gradient_equals_a_loop(models: tuple[Path, Path], tmp_path: Path, estimator: str, rewarded: bool) -> None:
    """Alone, with advantages of 0, and beside the reward."""
    spec = distilled(models, estimator)
    groups, audio = make_batch(3)
    if not rewarded:
        groups = [replace(g, samples=tuple(replace(s, advantage=0.0) for s in g.samples)) for g in groups]
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    found = keep_gradients(learner.policy, learner.optimiser)
    metrics = learner.update(1, plan_updates(groups, [], 1, 1)[0], audio).metrics
    learner.close()

    student, teacher = (load_family(folder).load_language_model() for folder in models)
    student.requires_grad_(True)
    count, logged = totals(groups).tokens, 0.0
    for group in groups:
        layout = group.layout
        where = torch.arange(layout.audio_start, layout.audio_start + layout.audio_length)
        for sample in group.samples:
            ids, steps = torch.tensor([*layout.token_ids, *sample.token_ids]), len(sample.token_ids)
            both = []
            for model in (student, teacher):
                embeddings = model.get_input_embeddings()(ids).index_copy(0, where, audio[group.audio].embeddings)
                both.append(processed(model, embeddings, len(layout.token_ids), steps, spec))
            ours, theirs = both[0], both[1].detach()
            loss = torch.zeros(())
            for step, token in enumerate(sample.token_ids):
                d = ours[step, token] - theirs[step, token]
                finite = torch.isfinite(theirs[step])
                full = (ours[step, finite].exp() * (ours[step, finite] - theirs[step, finite])).sum()
                # The gradient of k1 is that of k2.
                loss = loss + WEIGHT * (full if estimator == "full" else d.square() / 2) / count
                loss = loss - sample.advantage * ours[step, token] / count
                logged += float({"full": full, "k1": d, "k2": d.square() / 2}[estimator].detach()) / count
            loss.backward()
    assert metrics["learner/teacher_kl"] == pytest.approx(logged, rel=1e-4)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[f"language_model.{name}"], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def sampled(spec: RankSpec, weights: dict[str, torch.Tensor], step: int) -> tuple[list[TrainGroup], dict[int, Any]]:
    """Samples of the student as it is, with their log-probs."""
    model = load_family(Path(spec.model)).load_language_model()
    model.load_state_dict(weights, strict=False)
    groups, audio = make_batch(4)
    generator = torch.Generator().manual_seed(step)
    fresh = []
    for group in groups:
        layout, samples = group.layout, []
        where = torch.arange(layout.audio_start, layout.audio_start + layout.audio_length)
        for _ in range(4):
            tokens: list[int] = []
            logprobs: list[float] = []
            while len(tokens) < 6 and spec.stop_ids[0] not in tokens:
                with torch.no_grad():
                    embeddings = model.get_input_embeddings()(torch.tensor([*layout.token_ids, *tokens]))
                    embeddings = embeddings.index_copy(0, where, audio[group.audio].embeddings)
                    rows = processed(model, embeddings, len(layout.token_ids), len(tokens) + 1, spec)
                tokens.append(int(torch.multinomial(rows[-1].exp(), 1, generator=generator)))
                logprobs.append(float(rows[-1, tokens[-1]]))
            samples.append(Sample(tuple(tokens), tuple(logprobs), 0.0))
        fresh.append(replace(group, samples=tuple(samples)))
    return fresh, audio


@pytest.mark.parametrize("estimator", ["full", "k1"])
def test_a_student_comes_nearer_to_its_teacher(models: tuple[Path, Path], tmp_path: Path, estimator: str) -> None:
    """On samples of its own, drawn anew for each update."""
    spec = distilled(models, estimator, lr=3e-3)
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    kl = []
    for step in range(1, 17):
        weights = {n: t for bucket in learner.weight_buckets(torch.float32, 1 << 30) for n, t in bucket.tensors.items()}
        groups, audio = sampled(spec, weights, step)
        metrics = learner.update(step, plan_updates(groups, [], 1, 1)[0], audio).metrics
        assert metrics["learner/logprob_gap_max"] < 1e-3, "the samples are the student's own"
        kl.append(metrics["learner/teacher_kl"])
    learner.close()
    assert sum(kl[-4:]) < 0.7 * sum(kl[:4]), kl


def test_two_ranks_equal_one(models: tuple[Path, Path], tmp_path: Path) -> None:
    for estimator in ("full", "k2"):
        loss = LossConfig(kl_estimator=estimator, kl_coef=0.05)  # type: ignore[arg-type]
        spec = distilled(models, loss=loss, micro_batch_tokens=40)
        assert_same(run(tmp_path, spec), run(tmp_path, spec, world=2))


def test_streamed_groups_give_the_same_gradient(models: tuple[Path, Path], tmp_path: Path) -> None:
    spec = distilled(models)
    assert_streamed_as_whole(spec, *make_batch(3), tmp_path)


def test_no_teacher_is_loaded_without_weight(models: tuple[Path, Path], tmp_path: Path) -> None:
    spec = make_spec(models[0], loss=LossConfig(), distillation=DistillationConfig(str(models[1]), 0.0))
    assert not needs_teacher(spec)
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    assert learner.teacher is None
    learner.close()


def wider(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SHAPE, "hidden_size", 96)
    return write_llasa(folder)


def test_a_teacher_that_speaks_may_be_wider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompts are tokens, which it embeds itself. Of the whole rank: one update."""
    student, teacher = write_llasa(tmp_path / "student"), wider(tmp_path / "teacher", monkeypatch)
    family = load_family(student)
    stop, (first, *_) = family.stop_token_ids[0], family.speech_ids  # type: ignore[attr-defined]
    samples: Sequence[Sample] = [
        Sample((first + i, first + 3, stop), (-1.0, -1.0, -1.0), advantage) for i, advantage in enumerate((1.0, -1.0))
    ]
    groups = [TrainGroup(PromptLayout((5, 6, 7), 0, 0), tuple(samples), 0)]
    spec = make_spec(
        student,
        loss=LossConfig(kl_estimator="full"),
        distillation=DistillationConfig(str(teacher)),
        stop_ids=(stop,),
        allowed_token_ids=family.allowed_token_ids,
    )
    learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    metrics = learner.update(1, plan_updates(groups, [], 1, 1)[0], {}).metrics
    learner.close()
    assert metrics["learner/teacher_kl"] > 0


def test_what_cannot_teach_is_refused(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_family(models[0])
    other = write_llasa(tmp_path / "other")
    with pytest.raises(UserError, match=r"has another vocabulary: \d+ tokens differ \('.*' is .* here and .* there"):
        teacher_family(distilled((models[0], other)), student)
    with pytest.raises(UserError, match="does not exist"):
        teacher_family(distilled((models[0], tmp_path / "none")), student)

    narrow = Policy.load(load_family(other), ["language_model"], torch.float32)
    wide = Policy.load(
        load_family(wider(tmp_path / "wide", monkeypatch)), ["language_model"], torch.float32, frozen=True
    )
    check_teacher(wide, narrow, load_family(other), full=True)
    with pytest.raises(UserError, match="its embeddings are 96 wide and the model's 64"):
        check_teacher(wide, narrow, student, full=False)
    wide.language_model.resize_token_embeddings(VOCABULARY)
    check_teacher(wide, narrow, load_family(other), full=False)
    with pytest.raises(UserError, match="its output layer has 262 rows"):
        check_teacher(wide, narrow, load_family(other), full=True)


def test_replayed_groups_have_no_teacher(models: tuple[Path, Path], tmp_path: Path) -> None:
    """SFT replay is cross-entropy alone."""
    groups, audio = make_batch(2)
    replay = [replace(g, samples=(Sample(g.samples[0].token_ids, (), 1.0),), audio=g.audio + 9) for g in groups]
    audio |= {index + 9: EncodedAudio(item.layout, item.embeddings, None, 1.0, 0.5) for index, item in audio.items()}
    found = []
    for spec in (distilled(models), make_spec(models[0], loss=LossConfig(), max_grad_norm=0.0)):
        learner = LearnerRank(spec, 0, 1, f"file://{tmp_path / str(len(found))}")
        gradients = keep_gradients(learner.policy, learner.optimiser)
        learner.update(1, plan_updates([], replay, 1, 1)[0], audio)
        learner.close()
        found.append(gradients)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)
