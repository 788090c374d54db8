"""Rewards over HTTP are those of this process, to the last bit."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rewards.compose import RewardComposition
from rewards.config import JudgeConfig, RewardConfig, RewardItem, SoundConfig
from rewards.pipeline import SoundPipeline
from speech.records import Group, Reward
from tests.rewards.conftest import build_group
from tests.rewards.listening.sound_fixtures import (
    ASR_DEMO,
    TapeCodec,
    recordings,
    sound_config,
    sound_group,
    tape_codec,
)
from tests.rewards.over_http.servers import serving

ROOT = Path(__file__).parents[3]


def as_local(rewards: Sequence[Reward], name: str, by: str) -> list[tuple[object, ...]]:
    """Rewards over HTTP under the local reward's name."""

    def renamed(text: str) -> str:
        return text.removeprefix(f"{by}: ") if text.startswith(f"{by}: {name}: ") else text.replace(by, name, 1)

    return [
        (r.total, {renamed(k): v for k, v in r.parts.items()}, {renamed(k): v for k, v in r.details.items()},
         r.invalid and renamed(r.invalid))
        for r in rewards
    ]  # fmt: skip


def plain(rewards: Sequence[Reward]) -> list[tuple[object, ...]]:
    return [(r.total, dict(r.parts), dict(r.details), r.invalid) for r in rewards]


@pytest.mark.parametrize("name", ["accuracy", "hallucination", "keyword", "language_match", "no_stop"])
def test_rewards_on_text(name: str) -> None:
    texts = ["the third way", "the third third way \ud800 路", "", "wey " * 9]
    group = build_group("the third way", texts, keywords=("way",), claimed="English", peak=0.1 + 0.2)
    silent = dataclasses.replace(group, peak=0.0)
    options = {"shape": "exp"} if name == "accuracy" else {}
    local = RewardComposition(RewardConfig([RewardItem(name, 0.3, options)]))
    with serving(name, **options) as url:
        remote = RewardComposition(RewardConfig([RewardItem("http", 0.3, {"url": url})]))
        for each in (group, silent):
            assert as_local(remote.score(each).rewards, name, "http") == plain(local.score(each).rewards)


@pytest.fixture(scope="module")
def tape() -> TapeCodec:
    return tape_codec(4)


SOUND = SoundConfig(judge=JudgeConfig("demo", str(ASR_DEMO)))


@pytest.mark.parametrize(
    "name", ["tts_accuracy", "duration", "diversity", "speaker_similarity", "trailing_silence", "token_loops"]
)
def test_rewards_on_sound(tape: TapeCodec, name: str) -> None:
    """One sample is silent, one is empty, one cannot be decoded, one did not end."""
    takes = tape.takes
    samples = [takes[0], takes[1], (tape.silence,) * 20, (), (tape.size,), takes[0][:30]]
    finish = ["stop", "stop", "stop", "stop", "stop", "length"]
    group = sound_group(samples, text=recordings(1)[0].text, finish=finish, voice=takes[2])  # type: ignore[arg-type]

    def score(config: RewardConfig) -> tuple[Reward, ...]:
        return SoundPipeline(config, lambda: tape).score([group])[0].rewards

    local = score(sound_config(name, sound=SOUND))
    with serving(name, SOUND) as url:
        remote = score(sound_config("http_sound", url=url, voice=name == "speaker_similarity", timeout_s=60.0))
    assert as_local(remote, name, "http_sound") == plain(local)
    assert [reward.valid for reward in local] == [True, True, True, True, False, True]


def test_a_reward_that_needs_sound_says_so_to_a_client_that_sends_none() -> None:
    with serving("token_loops") as url:
        composition = RewardComposition(RewardConfig([RewardItem("http", options={"url": url})]))
        (reward,) = composition.score(build_group("a", ["a"])).rewards
    assert str(reward.invalid).startswith("http: status 400") and "use http_sound" in str(reward.invalid)


def test_a_reward_that_raises_on_the_server_is_a_reason_here() -> None:
    with serving("tests.rewards.misbehaving_rewards:raises") as url:
        composition = RewardComposition(RewardConfig([RewardItem("http", options={"url": url})]))
        (reward,) = composition.score(build_group("a", ["a"])).rewards
    assert (reward.total, reward.invalid) == (None, "http: raises: RuntimeError: judge is down")


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "expected a JSON object"),
        (b'{"protocol": 1}', 400, "prompt: required, but not given; samples: required"),
        (b'{"protocol": 2, "prompt": {"id": "a", "utterance": "a", "text": "a"}, "samples": []}', 400, "speaks 1"),
        (None, 411, "Content-Length"),
    ],
)
def test_requests_that_are_none(body: bytes | None, status: int, error: str) -> None:
    with serving("accuracy") as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.putrequest("POST", "/")
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        assert (answer.status, error in json.loads(answer.read())["error"]) == (status, True)
        connection.close()


def test_a_subclass_gives_a_second_server_its_name(make_second: str) -> None:
    with serving("accuracy") as first, serving("no_stop") as second:
        items = [RewardItem("http", options={"url": first}), RewardItem(make_second, options={"url": second})]
        (reward,) = RewardComposition(RewardConfig(items)).score(build_group("a", ["a"])).rewards
    assert reward.parts == {"http": 1.0, "Second": 0.0}


@pytest.fixture
def make_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "second_server.py").write_text(
        "from rewards.on_text.http import HttpReward\n\nclass Second(HttpReward):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "second_server:Second"


def test_the_command(tmp_path: Path) -> None:
    arguments = ["serve-reward", "accuracy", "--port", "0", "options.shape=exact"]
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.fullmatch(r"reward accuracy at (http://127\.0\.0\.1:\d+/)\n", process.stdout.readline())
            assert match is not None
            composition = RewardComposition(RewardConfig([RewardItem("http", options={"url": match[1]})]))
            group: Group = build_group("a b", ["a b", "a"])
            assert [reward.total for reward in composition.score(group).rewards] == [1.0, 0.0]
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acuracy"], "did you mean 'accuracy'"),
        (["accuracy", "options.shap=exp"], "did you mean 'shape'"),
        (["accuracy", "shape=exp"], "shape: unknown key"),
        (["accuracy", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["tts_accuracy"], "rewards.sound.judge.kind is empty"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.cli import main

    assert main(["serve-reward", *arguments]) == 2
    assert message in capsys.readouterr().err
