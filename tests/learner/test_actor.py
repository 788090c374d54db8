"""The gangs of real actors: what the controller plans for them, and their checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from learner.batches.batch import TrainGroup
from learner.batches.plan import plan_updates
from learner.components.transport import Receivers
from learner.config import LoraConfig
from learner.gang import LearnerGroup, Token2TextGroup
from learner.rank import LearnerRank
from learner.spec import StepResult
from learner.token2text.model import Token2Text
from learner.token2text.plan import SpeechText, plan_token2text
from learner.token2text.rank import Token2TextRank
from rollout.leftovers import free_leftovers
from speech.runtime.shared_weights import SharedBucket
from speech.runtime.weights import WeightBucket
from tests.demo_checkpoint import write_demo_checkpoint
from tests.learner.losses.test_diffro import make_groups, reward_model, spec_for
from tests.learner.test_rank import make_batch, make_spec
from tests.learner.token2text.test_rank import CONFIG, corpus
from tests.learner.token2text.test_rank import spec as token2text_spec
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_checkpoint(tmp_path_factory.mktemp("gang") / "model", scale=2.0)


def wait_until_saved(group: LearnerGroup | Token2TextGroup) -> None:
    while not group.saved():
        time.sleep(0.05)


def _update(
    gang: LearnerGroup, step: int, groups: Sequence[TrainGroup], audio: Mapping[int, Any] | None = None, **options: bool
) -> StepResult:
    """Group by group."""
    update = gang.begin(step, **options)
    for group in groups:
        update.add([group], audio or {})
    return update.finish([], audio or {})


def test_a_gang_learns_and_saves_what_one_rank_does(sharp_checkpoint: Path, tmp_path: Path) -> None:
    """Its reward model has two frames per token, on which it depends what text is possible, and so the loss."""
    judge = reward_model()
    judge = Token2Text(replace(judge.config, labels_per_token=2))
    judge.save(tmp_path / "judge")
    groups = make_groups()
    groups[0] = replace(groups[0], text_ids=(1, 2, 3, 4) * 3)
    groups[1] = replace(groups[1], text_ids=(1, 2, 3, 4) * 9)
    settings = {"filter": "none", "micro_batch_tokens": 30}
    spec = spec_for(sharp_checkpoint, tmp_path / "judge", **settings)
    alone = LearnerRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    expected = alone.update(1, plan_updates(groups, [], 1, 1, "none", labels_per_token=2)[0], {}).metrics
    weights = {
        name: tensor for bucket in alone.weight_buckets(torch.float32, 2**30) for name, tensor in bucket.tensors.items()
    }
    alone.close()
    assert 0 < expected["diffro/impossible"] < 1

    gang = LearnerGroup(spec_for(sharp_checkpoint, tmp_path / "judge", ranks=2, **settings), ENVIRONMENT)
    try:
        ray.get(gang.start(300))
        assert _update(gang, 1, groups).metrics == pytest.approx(expected, abs=1e-4, rel=1e-4)
        for copy in (True, False):
            gang.save_in_background(str(tmp_path / f"{copy}"), copy=copy)
            wait_until_saved(gang)
        _update(gang, 2, groups)
        gang.load(str(tmp_path / "False"))
        (bucket,) = ray.get(gang.publish("float32", 2**30))
        for name, tensor in weights.items():
            torch.testing.assert_close(bucket.tensors[name], tensor, rtol=0.0, atol=5e-4, msg=name)
    finally:
        gang.close()


def test_a_gang_trains_the_reward_model_of_one_rank(tmp_path: Path) -> None:
    Token2Text(replace(CONFIG, labels_per_token=2)).save(tmp_path / "start")
    spec = replace(token2text_spec(), start=str(tmp_path / "start"))
    items = [*corpus(5), SpeechText((1, 2, 3), (1, 2, 3, 1)), SpeechText((1, 2, 3), (1, 2, 3, 1, 2, 3, 1))]
    items = [replace(item, attributes=(0,)) for item in items]
    alone = Token2TextRank(spec, 0, 1, f"file://{tmp_path / 'meet'}")
    expected = alone.update(1, plan_token2text(items, 1, 0.0, 1, 1, labels_per_token=2)[0])
    alone.close()
    assert expected["learner/impossible"] == pytest.approx(1 / 7)
    gang = Token2TextGroup(replace(spec, config=replace(spec.config, ranks=2)), ENVIRONMENT)
    try:
        ray.get(gang.start(300))
        assert gang.update(1, items) == pytest.approx(expected, abs=1e-4, rel=1e-4)
        gang.save_in_background(str(tmp_path / "checkpoint"), copy=False)
        wait_until_saved(gang)
        assert Token2Text.load(tmp_path / "checkpoint" / "hf").config == replace(CONFIG, labels_per_token=2)
    finally:
        gang.close()


def test_a_gang_learns_from_the_first_groups_while_the_others_are_sampled(model: Path) -> None:
    """What it learns depends on when they come in no bit, and is what it learns from all at once."""
    groups, audio = make_batch(9)
    found = []
    for ranks, tokens, hold in ((1, 4096, False), (2, 60, False), (2, 60, True)):
        gang = LearnerGroup(make_spec(model, ranks=ranks, micro_batch_tokens=tokens), ENVIRONMENT)
        try:
            ray.get(gang.start(300))
            references = {index: ray.put(item) for index, item in audio.items()}
            result = _update(gang, 1, groups, references, hold=hold)
            (bucket,) = ray.get(gang.publish("float32", 2**30))
            found.append((result, bucket.tensors))
        finally:
            gang.close()
    (whole, expected), (first, streamed), (second, held) = found
    assert first == second and all(torch.equal(held[name], tensor) for name, tensor in streamed.items())
    assert first.metrics == pytest.approx(whole.metrics, abs=1e-4, rel=1e-4)
    assert first.sample_gaps.keys() == whole.sample_gaps.keys() == set(range(9))
    for name, tensor in expected.items():
        torch.testing.assert_close(streamed[name], tensor, rtol=0.0, atol=5e-4, msg=name)


def test_a_gang_learns_adapters_round_by_round_and_gives_them_away(model: Path, tmp_path: Path) -> None:
    """With a reference, for which the adapters are off between the backward passes of a step."""
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    groups, audio = make_batch(9)
    lora = LoraConfig(rank=4)
    alone = LearnerRank(make_spec(model, lora=lora, lr=1e-2), 0, 1, f"file://{tmp_path / 'meet'}")
    expected = [alone.update(step, plan_updates(groups, [], 1, 1)[0], audio).metrics for step in (1, 2)]
    adapter, config = alone.adapter()
    alone.close()
    gang = LearnerGroup(make_spec(model, ranks=2, micro_batch_tokens=60, lora=lora, lr=1e-2), ENVIRONMENT)
    try:
        ray.get(gang.start(300))
        references = {index: ray.put(item) for index, item in audio.items()}
        found = [_update(gang, step, groups, references).metrics for step in (1, 2)]
        assert found[1]["learner/kl"] > 1e-5
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-3)
        tensors, settings = gang.adapter()
    finally:
        gang.close()
    assert settings == config and tensors.keys() == adapter.keys()
    for name, tensor in adapter.items():  # AdamW makes a part of the learning rate of rounding in a tiny gradient
        torch.testing.assert_close(tensors[name], tensor, rtol=0.0, atol=5e-3, msg=name)
        assert float((tensors[name] - tensor).abs().mean()) < 1e-4, name


def test_where_all_engines_are_on_its_node_weights_lie_in_shared_memory(model: Path) -> None:
    """One publication at a time, and nothing that a killed rank leaves is for ever."""
    gang = LearnerGroup(make_spec(model, ranks=2), ENVIRONMENT)
    try:
        ray.get(gang.start(300))
        elsewhere = ray.get(gang.publish("bfloat16", 10_000, Receivers({gang.node, "another"})))
        assert all(isinstance(bucket, WeightBucket) for bucket in elsewhere)
        first, second = (ray.get(gang.publish("bfloat16", 10_000, Receivers({gang.node}))) for _ in range(2))
        assert len(second) > 1 and not any(bucket.file.exists() for bucket in first)
        for sent, shared in zip(elsewhere, second, strict=True):
            assert isinstance(shared, SharedBucket) and shared.digests == sent.digests
            assert shared.shapes == sent.shapes
            tensors = shared.read().tensors
            assert all(torch.equal(tensors[name], tensor) for name, tensor in sent.tensors.items())
        ray.get(gang.publish("bfloat16", 10_000))
        assert not any(bucket.file.exists() for bucket in second)
        (left, *_) = ray.get(gang.publish("float32", 2**30, Receivers({gang.node})))
    finally:
        gang.close()

    def freed() -> bool:
        free_leftovers()
        return not left.file.exists()

    until(freed)


def test_a_rank_that_lost_a_part_of_the_gradient_does_not_update(model: Path) -> None:
    groups, audio = make_batch(9)
    gang = LearnerGroup(make_spec(model, micro_batch_tokens=60), ENVIRONMENT)
    try:
        ray.get(gang.start(300))
        references = {index: ray.put(item) for index, item in audio.items()}
        (before,) = ray.get(gang.publish("float32", 2**30))
        update = gang.begin(1)
        update.add(groups[:5], references)
        update.add([replace(groups[5], samples=())], references)  # nothing to learn from: packing refuses it
        update.add(groups[6:], references)
        with pytest.raises(ray.exceptions.RayTaskError, match="has no samples"):
            update.finish([], references)
        (after,) = ray.get(gang.publish("float32", 2**30))
        assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
        assert _update(gang, 1, groups, references).metrics["learner/grad_norm"] > 0, "and can go on"
    finally:
        gang.close()
