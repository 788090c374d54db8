"""The gangs of real actors: what the controller plans for them, and their checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from learner.batches.plan import plan_updates
from learner.gang import LearnerGroup, Token2TextGroup
from learner.rank import LearnerRank
from learner.token2text.model import Token2Text
from learner.token2text.plan import SpeechText, plan_token2text
from learner.token2text.rank import Token2TextRank
from tests.learner.losses.test_diffro import make_groups, reward_model, spec_for
from tests.learner.token2text.test_rank import CONFIG, corpus
from tests.learner.token2text.test_rank import spec as token2text_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def wait_until_saved(group: LearnerGroup | Token2TextGroup) -> None:
    while not group.saved():
        time.sleep(0.05)


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
        assert gang.update(1, groups, [], {}).metrics == pytest.approx(expected, abs=1e-4, rel=1e-4)
        for copy in (True, False):
            gang.save_in_background(str(tmp_path / f"{copy}"), copy=copy)
            wait_until_saved(gang)
        gang.update(2, groups, [], {})
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
