"""One file of a user's own is all that a new reward, loss, advantage, judge, speaker model, family or codec takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.config import load_config
from learner.batches.advantage import compute_advantages
from learner.batches.plan import plan_updates
from learner.config import LossConfig
from learner.rank import LearnerRank
from rewards.compose import RewardComposition
from rewards.config import JudgeConfig, RewardConfig, RewardItem, SpeakerConfig
from rewards.listening.judge import build_judge, check_judge
from rewards.listening.speaker import build_speaker_model
from speech.codecs import load_codec
from speech.errors import UserError
from speech.families import load_family
from tests import toys
from tests.learner.ranks import run_ranks
from tests.learner.test_rank import make_batch, make_spec
from tests.rewards.conftest import build_group


def test_a_configuration_names_them() -> None:
    overrides = [
        *("name=toys", "model.path=m", "data.train=t.jsonl", "model.family=tests.toys:ToyFamily"),
        *("learner.advantage=tests.toys:ranked", "learner.loss.name=tests.toys:reinforce"),
        *("rewards.items=[{name: tests.toys:brevity, options: {per_character: 0.5}}]",),
        *("rewards.sound.judge.kind=tests.toys:Parrot", "rewards.sound.speaker.kind=tests.toys:Loudness"),
    ]
    config = load_config(None, overrides)
    assert config.learner.advantage == "tests.toys:ranked" and config.learner.loss.name == "tests.toys:reinforce"


def test_a_reward() -> None:
    composition = RewardComposition(RewardConfig([RewardItem("tests.toys:brevity", 2.0, {"per_character": 0.5})]))
    scored = composition.score(build_group("a", ["", "abc"]))
    assert [reward.total for reward in scored.rewards] == [0.0, -3.0]
    assert scored.rewards[1].parts == {"brevity": -1.5}


def test_an_advantage() -> None:
    found = compute_advantages("tests.toys:ranked", [5.0, 1.0, 9.0, 2.0], [True, True, True, False])
    assert found.tolist() == [0.0, -1.0, 1.0, 0.0]


def _toy_update(rank: int, meeting: str, model: str, out: str) -> None:
    spec = make_spec(Path(model), loss=LossConfig(name="tests.toys:reinforce"))
    learner = LearnerRank(spec, 0, 1, f"file://{meeting}")
    groups, audio = make_batch()
    (shares,) = plan_updates(groups, [], 1, 1)
    torch.save(learner.update(1, shares, audio).metrics, out)
    learner.close()


def test_a_policy_loss(demo_checkpoint: Path, tmp_path: Path) -> None:
    """It is the loss of a real update."""
    run_ranks(_toy_update, 1, str(tmp_path / "meeting"), str(demo_checkpoint), str(tmp_path / "metrics"))
    metrics = torch.load(tmp_path / "metrics")
    assert metrics["learner/toy"] < 0 and metrics["learner/grad_norm"] > 0 and "learner/entropy" not in metrics


def test_a_judge_and_a_speaker_model() -> None:
    config = JudgeConfig("tests.toys:Parrot", "a cage")
    check_judge(config)
    judge = build_judge(config)
    assert judge.transcribe([np.zeros(7, np.float32)], 8000, "en")[0].text == "7 samples from a cage"
    model = build_speaker_model(SpeakerConfig("tests.toys:Loudness", "anywhere"))
    (loud, louder) = model.embed([np.full(9, 0.5, np.float32), np.full(9, 0.9, np.float32)], 8000)
    assert 0 < float(loud @ louder) < 1


def test_a_family(demo_checkpoint: Path) -> None:
    assert isinstance(load_family(demo_checkpoint, "tests.toys:ToyFamily"), toys.ToyFamily)
    with pytest.raises(UserError, match=r"model family 'tests.toys:brevity' is no subclass"):
        load_family(demo_checkpoint, "tests.toys:brevity")


def test_a_codec(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    codec = load_codec(tmp_path, "tests.toys:ToyCodec")
    (wave,) = codec.decode([[3, 15]], [[]])
    assert codec.encode([wave]) == [[3, 15]]
    with pytest.raises(UserError, match=r"codec 'tests.toys:ranked' is no subclass"):
        load_codec(tmp_path, "tests.toys:ranked")
