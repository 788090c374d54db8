"""A judge on a real vLLM engine: it reads what the same checkpoint reads by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.actors.listener import Listener
from cluster.actors.rewards import RewardPool
from cluster.judges.vllm import VLLMJudge, hearing_family
from rewards.config import JudgeConfig, JudgeEngineConfig, RewardConfig, SoundConfig
from rewards.listening.judge import JudgeLostError, build_judge, check_judge
from rewards.pipeline import SoundPipeline
from rollout.leftovers import VARIABLE
from speech.audio import load_audio
from speech.edits import EditCounts, word_edits
from speech.errors import UserError
from tests.rewards.listening.sound_fixtures import ASR_DEMO, RATE, recordings, sound_config, sound_group, tape_codec
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint
from tests.waiting import until

ENGINE = JudgeEngineConfig(max_model_len=512, kv_cache_gb=0.25)
CONFIG = JudgeConfig("vllm", str(ASR_DEMO), ["en"], engine=ENGINE)
# Recordings of the embedded test set whose noise the small demo model stands.
UTTERANCES = [recordings(10)[i] for i in (0, 1, 2, 5, 7, 9)]
WAVES = [load_audio(utterance, RATE) for utterance in UTTERANCES]


@pytest.fixture(scope="module")
def judge() -> Iterator[VLLMJudge]:
    judge = build_judge(CONFIG)
    assert isinstance(judge, VLLMJudge)
    yield judge
    judge.close()


def engines_of(process: psutil.Process) -> list[psutil.Process]:
    """Processes of engines that actors below a process have started."""
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error, ProcessLookupError):
            if VARIABLE in child.environ() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def test_it_reads_as_transformers_does(judge: VLLMJudge) -> None:
    plain = build_judge(JudgeConfig("demo", str(ASR_DEMO))).transcribe(WAVES, RATE, "en")
    heard = judge.transcribe(WAVES, RATE, "en")
    assert heard == plain == judge.transcribe(WAVES, RATE, "en"), "greedy, and the same again"
    edits = [word_edits(u.text, t.text, "en") for u, t in zip(UTTERANCES, heard, strict=True)]
    assert sum(edits, EditCounts()).rate < 0.2
    assert [judge.transcribe([wave], RATE, "en")[0] for wave in WAVES] == heard, "whoever its neighbours are"
    assert judge.languages == {"en"} and judge.takes_all and not judge.states_likelihood


def test_what_does_not_fit_is_a_fault_of_its_sample(judge: VLLMJudge) -> None:
    with pytest.raises(ValueError, match=r"s do not fit max_model_len=512"):
        judge.transcribe([WAVES[0].repeat(40)], RATE, "en")
    assert judge.transcribe(WAVES[:1], RATE, "en")[0].text


def test_a_family_with_random_weights_reads_as_transformers_does(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "qwen", text={"max_position_embeddings": 1024}, tied=False)
    plain = build_judge(JudgeConfig("demo", str(folder))).transcribe(WAVES[:3], RATE, "en")
    judge = build_judge(JudgeConfig("vllm", str(folder), engine=ENGINE))
    assert isinstance(judge, VLLMJudge)
    assert judge.languages is not None and {"en", "zh", "yue"} <= judge.languages
    heard = judge.transcribe(WAVES[:3], RATE, "en")
    judge.close()
    # A random model never stops, and the budgets of the two judges differ.
    assert all(len(b.text) >= 20 and a.text[:20] == b.text[:20] for a, b in zip(heard, plain, strict=True))
    assert len({t.text for t in heard}) == 3


def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "qwen"))
    with pytest.raises(UserError, match=r"rewards\.sound\.second_judge\.languages: .*'qwen3_asr' does not know sw"):
        hearing_family(JudgeConfig("vllm", folder, ["en", "sw"]), "second_judge")
    assert hearing_family(JudgeConfig("vllm", folder, ["english", "zh"])).name == "qwen3_asr"
    speaks = str(ASR_DEMO.parent / "tts_demo")
    with pytest.raises(UserError, match=r"rewards\.sound\.judge\.path: .*'demo_tts', which does not hear"):
        hearing_family(JudgeConfig("vllm", speaks))
    with pytest.raises(UserError, match="does not exist"):
        hearing_family(JudgeConfig("vllm", str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"rewards\.sound\.judge\.device: judge 'vllm'.*judge\.gpus"):
        check_judge(replace(CONFIG, device="cuda"))
    with pytest.raises(UserError, match=r"rewards\.sound\.judge\.engine: judge 'demo' has no engine"):
        check_judge(replace(CONFIG, kind="demo"))


def rewards(judge: JudgeConfig, **settings: Any) -> RewardConfig:
    sound = SoundConfig(judge=judge, second_judge=JudgeConfig("demo", str(ASR_DEMO.parent / "tts_judge")))
    return replace(sound_config("tts_accuracy", sound=sound), **settings)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_reward_actors_and_the_listener_outlive_its_engine() -> None:
    codec = partial(tape_codec, 10)
    takes = codec().takes
    groups = [
        sound_group([takes[i], takes[i + 1]], text=utterance.text, name=utterance.id)
        for i, utterance in enumerate(recordings(4))
    ]
    expected = SoundPipeline(rewards(JudgeConfig("demo", str(ASR_DEMO))), codec).score(groups)
    pool = RewardPool(rewards(CONFIG, count=1, timeout_s=300.0), codec)
    listener = None
    try:
        assert pool.score(groups) == expected
        (engine,) = engines_of(psutil.Process())
        engine.kill()
        assert pool.score(groups) == expected
        assert pool.replaced == 1 and pool.counts.invalid == {}
        until(lambda: engine not in engines_of(psutil.Process()))
        assert len(engines_of(psutil.Process())) == 1
        pool.close()
        until(lambda: not engines_of(psutil.Process()))
        listener = Listener(rewards(CONFIG), codec)
        first = listener.report(groups, None, 300.0)
        assert all(r.heard and not r.problems for r in first)
        (engine,) = engines_of(psutil.Process())
        engine.kill()
        assert listener.report(groups, None, 300.0) == first
    finally:
        pool.close()
        if listener is not None:
            listener.close()


def test_a_lost_engine_is_no_samples_fault() -> None:
    codec = partial(tape_codec, 2)
    before = psutil.Process().children()
    pipeline = SoundPipeline(rewards(CONFIG), codec)
    pipeline.load()
    group = sound_group([codec().takes[0]])
    assert pipeline.score([group])[0].rewards[0].valid
    engines = [child for child in psutil.Process().children() if child not in before and "VLLM" in child.name()]
    assert len(engines) == 1
    engines[0].kill()
    with pytest.raises(JudgeLostError, match="judge 'vllm'"):
        pipeline.score([group])
    pipeline.models.judge("judge").close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("ray_session")
def test_actors_ask_ray_for_a_share_of_a_gpu() -> None:
    demo = JudgeConfig("demo", str(ASR_DEMO), gpus=0.25)
    pool = RewardPool(rewards(demo, count=2), partial(tape_codec, 1))
    listener = Listener(rewards(demo), partial(tape_codec, 1))
    until(lambda: ray.cluster_resources()["GPU"] - ray.available_resources()["GPU"] == 0.75)
    pool.close()
    listener.close()
    until(lambda: ray.available_resources()["GPU"] == ray.cluster_resources()["GPU"])
    deaf = RewardPool(replace(rewards(demo), items=sound_config("no_stop").items), partial(tape_codec, 1))
    deaf.score([])
    assert deaf.serving() >= 0 and ray.available_resources()["GPU"] == ray.cluster_resources()["GPU"]
    deaf.close()
