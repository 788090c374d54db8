"""What pools of encoders and codecs add to `ActorPool`; real encoders under faults are in tests/chaos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import soundfile

from cluster.actors import encoders
from cluster.actors.encoders import AudioEncoderPool, CodecPool, VoiceEncoderPool
from cluster.actors.model import ModelRef
from rollout.actors import Encoded, EncodedRef, EncodedSummary
from rollout.config import EncoderConfig
from speech.records import BadUtterance, PromptLayout, Utterance
from tests.cluster.actors.test_pool import is_dead
from tests.waiting import until

LARGE = 200_000
"""Too large for Ray to send along with the answer: it stays in the object store."""
CODEC = Path(__file__).parents[3] / "assets" / "tts_codec"

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=0)
class StandIn:
    """ "Encodes" an utterance to what the learner published last; ends itself at the text `die`."""

    def __init__(self, *_: Any) -> None:
        self.states = {"adaptor": "initial"}

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def encode(self, utterances: Sequence[Utterance], mode: str) -> list[Any]:
        if any(u.text == "die" for u in utterances):
            ray.actor.exit_actor()
        summaries = [EncodedSummary(1.0, PromptLayout((i,), 0, 1)) for i in range(len(utterances))]
        items = [f"{u.id} {mode} {self.states['adaptor']}".ljust(LARGE) for u in utterances]
        return [Encoded(summaries, len(utterances)), *items]

    def update(self, states: dict[str, Any]) -> None:
        self.states = states


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[AudioEncoderPool]:
    monkeypatch.setattr(encoders, "EncoderActor", StandIn)
    monkeypatch.setattr(encoders, "encoder_options", lambda config: {"num_cpus": 0})
    pool = AudioEncoderPool(ModelRef("none", None), EncoderConfig(count=2), "states")
    yield pool
    pool.close()


def utterances(*texts: str) -> list[Utterance]:
    return [Utterance(id=f"u{i}", audio="/none", text=text) for i, text in enumerate(texts)]


def test_prompts_are_those_of_the_last_update_and_outlive_their_encoder(pool: AudioEncoderPool) -> None:
    first = pool.encode(utterances("a", "b", "c"), 60.0, for_learner=True)
    assert [ray.get(item.ref).strip() for item in first] == [f"u{i} states initial" for i in range(3)]
    pool.update({"adaptor": "new"}, 60.0)
    pool.update({}, 60.0)  # nothing is trained before the language model
    again = pool.encode(utterances("a", "b", "c"), 60.0)
    assert [ray.get(item.ref).strip() for item in again] == [f"u{i} embeddings new" for i in range(3)]
    assert pool.encoded_total() == 6
    for actor in pool.actors:
        ray.kill(actor)
        until(partial(is_dead, actor))
    assert ray.get(again[0].ref).strip() == "u0 embeddings new", "what was encoded outlives its encoder"
    assert [ray.get(item.ref).strip() for item in pool.encode(utterances("a"), 60.0)] == ["u0 embeddings new"]
    assert pool.encoded_total() == 7


def test_a_deadly_utterance_is_found_and_costs_no_other_its_result(pool: AudioEncoderPool) -> None:
    found = pool.encode(utterances("a", "die", "b", "c", "d"), 60.0)
    bad = found[1]
    assert isinstance(bad, BadUtterance) and bad.id == "u1" and bad.lethal
    assert "encode: 3 actors failed on it" in bad.reason
    assert [ray.get(item.ref).split()[0] for item in found if isinstance(item, EncodedRef)] == ["u0", "u2", "u3", "u4"]
    assert pool.replaced == 3


@pytest.mark.slow
def test_actors_that_die_of_whatever_they_get_end_the_run(pool: AudioEncoderPool) -> None:
    with pytest.raises(RuntimeError, match="encode: 3 utterances in a row cost 3 actors each"):
        pool.encode(utterances(*["die"] * 6), 60.0)


def test_a_speech_lm_has_nothing_to_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "VoiceActor", StandIn)
    monkeypatch.setattr(encoders, "encoder_options", lambda config: {"num_cpus": 0})
    pool = VoiceEncoderPool(ModelRef("none", None), "codec", EncoderConfig(), "target")
    try:
        pool.update({}, 60.0)
        with pytest.raises(ValueError, match="a model that speaks has no adaptor to update"):
            pool.update({"adaptor": "new"}, 60.0)
        refs = pool.encode(utterances("a"), 60.0, for_learner=True) + pool.encode(utterances("a"), 60.0)
        assert [ray.get(item.ref).split()[1] for item in refs] == ["target", "prompt"]
    finally:
        pool.close()


def test_a_lost_codec_is_replaced_and_the_tokens_are_the_same(tmp_path: Path) -> None:
    def recording(name: str, frequency: float) -> Utterance:
        wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(8000) / 16_000)
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000)
        return Utterance(id=name, audio=str(tmp_path / f"{name}.wav"), text=name)

    pool = CodecPool(str(CODEC), EncoderConfig(count=2))
    try:
        size, features = pool.describe(300.0)
        recordings = [recording("low", 200.0), recording("middle", 500.0), recording("high", 1500.0)]
        tokens = pool.tokenise(recordings, 120.0)
        assert len(set(tokens)) == 3 and all(0 <= token < size for row in tokens for token in row)
        assert features is None or len(features) == size
        assert pool.tokenise(recordings, 120.0) == tokens and pool.encoded_total() == 3, "they remember recordings"
        for actor in pool.actors:
            ray.kill(actor)
            until(partial(is_dead, actor))
        assert pool.tokenise(recordings, 120.0) == tokens and pool.encoded_total() == 6
        assert pool.replaced == 2
        missing = Utterance(id="missing", audio="", text="x")
        expected = [BadUtterance("missing", "audio: missing: there is no recording"), tokens[0]]
        assert pool.tokenise([missing, recordings[0]], 120.0) == expected
    finally:
        pool.close()
