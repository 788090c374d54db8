"""What the listener adds to `ActorPool`; the stand-in has no judges."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray

from cluster.actors import listener
from cluster.actors.listener import Listener
from cluster.actors.roster import ATTEMPTS
from cluster.evaluation.speech import speech_scores
from rewards.config import RewardConfig
from speech.records import Group
from tests.cluster.actors.listener_stand_in import ListenerStandIn
from tests.rewards.listening.sound_fixtures import sound_group

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def hears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr(listener, "ListenerActor", ListenerStandIn)
    monkeypatch.setattr(listener, "actor_environment", lambda threads: {})
    hears = Listener(RewardConfig(), partial(Path, tmp_path))  # type: ignore[arg-type]
    yield hears
    hears.close()


def groups(*texts: str) -> list[Group]:
    return [sound_group([range(3), range(2)], text=text, name=text) for text in texts]


def test_reports_come_group_by_group_and_what_nobody_could_listen_to_has_failed(hears: Listener) -> None:
    assert hears.report(groups("a", "b"), None, 60.0) == ["a", "a", "b", "b"]
    reports = hears.report(groups("a", "die"), None, 60.0)
    assert hears.replaced == ATTEMPTS
    assert [(r.text, r.heard, r.index) for r in reports] == [
        ("a", None, 0),
        ("a", None, 1),
        ("die", None, 0),
        ("die", None, 1),
    ]
    assert all(r.problems[0].startswith("listen: ") for r in reports)
    scores = speech_scores(reports)
    assert (scores.failed, scores.wer) == (4, None)
    assert hears.report(groups("a"), None, 60.0) == ["a", "a"]


def test_an_evaluation_goes_on_where_no_listener_starts(hears: Listener, tmp_path: Path) -> None:
    ray.get(hears.start())
    tmp_path.rmdir()
    for actor in hears.actors:
        ray.kill(actor)
    reports = hears.report(groups("a"), None, 60.0)
    assert [r.heard for r in reports] == [None] * 2
    assert all(r.problems[0].startswith("listen: no actor starts, 3 attempts failed") for r in reports)
    tmp_path.mkdir()
    assert hears.report(groups("a"), None, 60.0) == ["a", "a"]
