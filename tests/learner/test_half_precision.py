"""A rank that computes in bfloat16, as on CUDA, gives away its weights in full precision, whatever it did before."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import MixedPrecisionPolicy

from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import pack
from learner.batches.plan import plan_updates
from learner.components import optimiser as optimisation
from learner.model.sampler import SamplerSettings
from learner.rank import LearnerRank
from learner.token2text.plan import plan_predictions, plan_token2text
from learner.token2text.rank import Token2TextRank
from speech.families import load_family
from speech.records import PromptLayout
from tests.learner.rank_cases import Models, PolicyCase
from tests.learner.token2text.test_rank import corpus, spec

HALF = partial(MixedPrecisionPolicy, param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


@pytest.fixture(autouse=True)
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy that `RankContext` takes on CUDA."""
    monkeypatch.setattr(optimisation, "MixedPrecisionPolicy", HALF)


@pytest.fixture
def learner(sharp_checkpoint: Path, tmp_path: Path) -> Iterator[LearnerRank]:
    """After an update of language model and adaptor."""
    models = Models(sharp_checkpoint, sharp_checkpoint)
    case = PolicyCase("grpo", ("language_model", "adaptor"))
    rank = LearnerRank(case.spec(models), 0, 1, f"file://{tmp_path / 'meet'}")
    groups, _, audio = case.batch(1)
    rank.update(1, plan_updates(groups, [], 1, 1)[0], audio)
    yield rank
    rank.close()


def evaluate(learner: LearnerRank) -> None:
    """A forward pass without a backward, as before several updates of one step."""
    group = TrainGroup(PromptLayout((7,), 0, 0), (Sample((8, 9, 10), (), 0.0),), audio=-1)
    learner._evaluate(learner.policy, pack([group]), {}, SamplerSettings())


def published(learner: LearnerRank) -> dict[str, torch.Tensor]:
    parts = [bucket.tensors for bucket in learner.weight_buckets(torch.float32, 10_000)]
    adaptor = {f"adaptor.{name}": tensor for name, tensor in learner.frontend_weights()["adaptor"].tensors.items()}
    return {name: tensor for part in (*parts, adaptor) for name, tensor in part.items()}


def test_publication_after_a_forward_pass(learner: LearnerRank) -> None:
    expected = published(learner)
    evaluate(learner)
    found = published(learner)
    assert found.keys() == expected.keys() and any(name.startswith("adaptor.") for name in found)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_checkpoint_after_a_forward_pass(learner: LearnerRank, tmp_path: Path) -> None:
    learner.save(str(tmp_path / "before"))
    evaluate(learner)
    learner.save(str(tmp_path / "after"))
    before, after = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("before", "after"))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert tensor.dtype == torch.float32 and torch.equal(after[name], tensor), name
    expected = published(learner)
    evaluate(learner)
    learner.load(str(tmp_path / "after"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in published(learner).items())


def test_a_probe_is_not_of_the_precision_in_which_the_policy_computes(
    learner: LearnerRank, sharp_checkpoint: Path
) -> None:
    ids = list(range(7, 27))
    exact = learner.probe_logprobs([ids], torch.float32, torch.float32)
    language_model = load_family(sharp_checkpoint).load_language_model()
    language_model.load_state_dict({n: t for n, t in published(learner).items() if "adaptor" not in n}, strict=False)
    with torch.no_grad():
        logits = language_model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert exact == pytest.approx(expected, abs=1e-5)


def test_reward_model_after_a_reading(tmp_path: Path) -> None:
    rank = Token2TextRank(spec(), 0, 1, f"file://{tmp_path / 'meet'}")
    rank.update(1, plan_token2text(corpus(6), 1, 0.0, 0, 1)[0])
    rank.save(str(tmp_path / "before"))
    items = corpus(4)
    rank.predict([items[i] for i in plan_predictions(items, 1)[0]], items[0])
    rank.save(str(tmp_path / "after"))
    rank.close()
    before, after = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("before", "after"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
