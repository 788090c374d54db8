"""The pool against real Ray actors that stand in for encoders; real encoders under faults are in tests/chaos."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.actors import encoder_members as prompt_members
from cluster.actors import encoders as prompt_pools
from cluster.actors.encoders import AudioEncoderPool
from cluster.actors.model import ModelRef
from rollout.actors import EncodedSummary
from rollout.config import EncoderConfig
from speech.records import PromptLayout, Utterance
from tests.waiting import until

LARGE = 200_000
"""Too large for Ray to send along with the answer: it stays in the object store."""

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=0)
class StandIn:
    """ "Encodes" an utterance to what the learner published last, and dies or hangs by its text, once."""

    def __init__(self, folder: str, family: Any, config: EncoderConfig, options: Any) -> None:
        self.folder, self.states, self.total = Path(folder), {"adaptor": "initial"}, 0

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def encode(self, utterances: Sequence[Utterance], mode: str) -> list[Any]:
        for word in ("die", "hang"):
            if any(u.text == word for u in utterances) and not (self.folder / word).exists():
                (self.folder / word).touch()
                os._exit(1) if word == "die" else time.sleep(600)
        time.sleep(2.0 * any(u.text == "slow" for u in utterances))
        if any(u.text == "always" for u in utterances):
            os._exit(1)
        self.total += len(utterances)
        summaries = [EncodedSummary(1.0, PromptLayout((i,), 0, 1)) for i in range(len(utterances))]
        return [summaries, *(f"{u.id} {mode} {self.states['adaptor']}".ljust(LARGE) for u in utterances)]

    def update(self, states: dict[str, Any]) -> None:
        self.states = states

    def encoded_total(self) -> int:
        return self.total


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AudioEncoderPool:
    monkeypatch.setattr(prompt_pools, "EncoderActor", StandIn)
    monkeypatch.setattr(prompt_pools, "encoder_options", lambda config: {"num_cpus": 0})
    pool = AudioEncoderPool(ModelRef(str(tmp_path), None), EncoderConfig(count=2), "states")
    ray.get(pool.start())
    return pool


def utterances(*texts: str) -> list[Utterance]:
    return [Utterance(id=f"u{i}", audio="/none", text=text) for i, text in enumerate(texts)]


def test_a_lost_encoder_is_replaced_with_the_weights_of_the_last_update(pool: AudioEncoderPool) -> None:
    first = pool.encode(utterances("a", "b", "c"), 60.0, for_learner=True)
    assert [ray.get(item.ref).strip() for item in first] == [f"u{i} states initial" for i in range(3)]
    pool.update({"adaptor": "new"}, 60.0)
    again = pool.encode(utterances("a", "b", "die", "c"), 60.0)
    assert [ray.get(item.ref).strip() for item in again] == [f"u{i} embeddings new" for i in range(4)]
    assert pool.replaced == 1 and pool.encoded_total() >= 4
    for actor in pool.actors:
        ray.kill(actor)
    assert [ray.get(item.ref).strip() for item in again[:1]] == ["u0 embeddings new"], (
        "what was encoded outlives its encoder"
    )
    assert len(pool.encode(utterances("a"), 60.0)) == 1


@pytest.mark.slow
def test_a_hung_encoder_is_replaced_and_a_deadly_utterance_named(pool: AudioEncoderPool) -> None:
    assert len(pool.encode(utterances("hang", "b"), 5.0)) == 2 and pool.replaced == 1
    with pytest.raises(RuntimeError, match="3 actors failed on utterances from 'u0'"):
        pool.encode(utterances("always"), 60.0)


def test_an_encoder_leaves_a_node_that_is_about_to_go(pool: AudioEncoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    node = ray.get(pool.start()[0])
    monkeypatch.setattr(prompt_pools, "draining_nodes", lambda: {node})
    assert len(pool.encode(utterances("a", "b"), 60.0)) == 2 and pool.replaced == 2


def test_a_pool_grows_with_the_current_weights_and_shrinks_when_its_work_is_done(pool: AudioEncoderPool) -> None:
    pool.update({"adaptor": "new"}, 60.0)
    pool.resize(3)
    assert len(pool.encode(utterances("a", "b", "c"), 60.0)) == 3
    until(lambda: pool.serving() == 3)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(pool.encode(utterances("slow", "slow", "slow"), 60.0)))
    thread.start()
    until(lambda: sum(len(member.calls) for member in pool._members) >= 3)
    pool.resize(1)
    assert pool.serving() == 1
    thread.join()
    assert [ray.get(item.ref).strip() for item in found] == [f"u{i} embeddings new" for i in range(3)]
    until(lambda: len(pool.loaded()) == 1)
    assert pool.encoded_total() == 6 and pool.replaced == 0
    assert len(pool.encode(utterances("a", "b"), 60.0)) == 2


def test_an_encoder_without_a_place_is_done_without(pool: AudioEncoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_pools, "encoder_options", lambda config: {"num_cpus": 1000})
    monkeypatch.setattr(prompt_members, "START_S", 0.2)
    pool.resize(3)
    assert len(pool.encode(utterances("a", "b", "c"), 60.0)) == 3
    assert (pool.wanted, pool.serving()) == (3, 2)
    pool.update({"adaptor": "new"}, 60.0)
    time.sleep(0.3)
    assert (pool.serving(), pool.wanted, len(pool.actors)) == (2, 2, 2)
    assert len(pool.encode(utterances("a", "b", "die", "c"), 60.0)) == 4, "the other encoder takes the share"
