"""The listener against a real Ray actor that stands in for the one with the judges."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.actors import listener
from cluster.actors.listener import Listener
from cluster.evaluation.speech import speech_scores
from rewards.config import RewardConfig
from rewards.report import SampleReport
from speech.records import Group
from tests.cluster.evaluation.test_speech import report
from tests.rewards.listening.sound_fixtures import sound_group

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=0)
class StandIn:
    """Hears what was to be said. The text `stop` halts the first, whose process id is in a file; `die` ends each."""

    def __init__(self, config: RewardConfig, folder: Any) -> None:
        self.folder = folder()

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def report(self, groups: Sequence[Group], folder: Path | None) -> list[list[SampleReport]]:
        texts = [group.prompt.utterance.text for group in groups]
        if "die" in texts:
            os._exit(1)
        if "stop" in texts and not (self.folder / "process").exists():
            (self.folder / "new").write_text(str(os.getpid()))
            (self.folder / "new").rename(self.folder / "process")
            time.sleep(600)
        return [[report(text=text) for _ in group.trajectories] for group, text in zip(groups, texts, strict=True)]


@pytest.fixture
def hears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listener:
    monkeypatch.setattr(listener, "ListenerActor", StandIn)
    hears = Listener(RewardConfig(), lambda: tmp_path)  # type: ignore[arg-type, return-value]
    ray.get(hears.start())
    return hears


def groups(*texts: str) -> list[Group]:
    return [sound_group([range(3)], text=text, name=text) for text in texts]


def test_one_that_is_killed_or_hangs_is_replaced_and_the_evaluation_goes_on(hears: Listener, tmp_path: Path) -> None:
    process = tmp_path / "process"

    def kill() -> None:
        while not process.exists():
            time.sleep(0.05)
        os.kill(int(process.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert [r.text for r in hears.report(groups("a", "stop"), None, 60.0)] == ["a", "stop"]
    assert hears.replaced == 1
    process.unlink()
    thread.join()
    assert [r.text for r in hears.report(groups("stop", "b"), None, 5.0)] == ["stop", "b"]
    assert hears.replaced == 2


def test_what_nobody_could_listen_to_has_failed(hears: Listener) -> None:
    reports = hears.report(groups("a", "die"), None, 60.0)
    assert hears.replaced == listener.ATTEMPTS
    assert [(r.text, r.heard, bool(r.problems)) for r in reports] == [("a", None, True), ("die", None, True)]
    scores = speech_scores(reports)
    assert (scores.failed, scores.wer) == (2, None)
    assert [r.heard for r in hears.report(groups("a"), None, 60.0)] == ["a b c d"]


def test_it_leaves_a_node_that_is_about_to_go(hears: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    node = ray.get(hears.start()[0])
    monkeypatch.setattr(listener, "draining_nodes", lambda: {node})
    assert len(hears.report(groups("a"), None, 60.0)) == 1 and hears.replaced == 1
