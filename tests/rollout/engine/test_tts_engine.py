"""The mask of a family that speaks, in a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rollout.config import SamplingConfig
from rollout.engine.engine import RolloutEngine
from speech.families.causal import CausalSpeechFamily
from speech.families.cosyvoice2 import CosyVoice2Family
from speech.families.demo.speaking import DemoTTSFamily
from speech.records import EncodedAudio, Group, Prompt, Trajectory, Utterance
from tests.rollout.tiny_lm import CONFIG
from tests.speech.families.tts_checkpoints import write_cosyvoice2, write_demo_tts

pytestmark = pytest.mark.slow

SAMPLING = SamplingConfig(group_size=8, temperature=1.0, max_new_tokens=40)
TEXTS = ("turn on the light", "stop", "play some music in the kitchen", "what is it")


def checkpoint(kind: str, folder: Path) -> CausalSpeechFamily:
    if kind == "demo_tts":
        return DemoTTSFamily(write_demo_tts(folder, scale=1.0))
    return CosyVoice2Family(write_cosyvoice2(folder))


class Speaker:
    """An engine with a random model, and what transformers says of its samples."""

    def __init__(self, family: CausalSpeechFamily) -> None:
        self.family = family
        self.model = family.load_language_model()
        self.runner = asyncio.Runner()
        self.engine = RolloutEngine(family, replace(CONFIG))
        self.runner.run(self.engine.start())

    def groups(self, sampling: SamplingConfig) -> list[Group]:
        prompts, audio = [], []
        for i, text in enumerate(TEXTS):
            utterance = Utterance(id=f"u{i}", audio="", text=text, prompt_audio="voice.wav", prompt_text="good day")
            prompts.append(Prompt(id=f"0/u{i}", utterance=utterance, epoch=0, position=i, seed=100 * i))
            layout = self.family.layout(text, utterance.prompt_text, [3, 1, 4])
            audio.append(EncodedAudio(layout, torch.zeros(0, 64), None, 1.0, 0.5, voice_tokens=(3, 1, 4)))
        return self.runner.run(self.engine.generate(prompts, audio, sampling))

    @torch.no_grad()
    def distributions(self, group: Group, sample: Trajectory, stop_masked: int = 0) -> torch.Tensor:
        """(tokens, vocabulary) log-probs over the allowed tokens alone, at temperature 1."""
        ids = torch.tensor([*group.layout.token_ids, *sample.token_ids])
        logits = self.model(ids[None]).logits[0, len(group.layout.token_ids) - 1 : -1]
        forbidden = torch.ones(logits.shape[1], dtype=torch.bool)
        forbidden[list(self.family.allowed_token_ids)] = False
        logits = logits.masked_fill(forbidden, -torch.inf)
        logits[:stop_masked, list(self.family.stop_token_ids)] = -torch.inf
        return logits.log_softmax(-1)

    def close(self) -> None:
        self.engine.shutdown()
        self.runner.close()


@pytest.fixture(scope="module", params=["demo_tts", "cosyvoice2"])
def speaker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    speaker = Speaker(checkpoint(request.param, tmp_path_factory.mktemp(request.param) / "model"))
    yield speaker
    speaker.close()


@pytest.fixture
def gap(speaker: Speaker) -> Callable[..., float]:
    def largest(groups: list[Group], stop_masked: int = 0) -> float:
        gaps = []
        for group in groups:
            for sample in group.trajectories:
                expected = speaker.distributions(group, sample, stop_masked)
                chosen = expected.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
                gaps.append(float((chosen - torch.tensor(sample.logprobs)).abs().max()))
        return max(gaps)

    return largest


def test_nothing_but_speech_and_stop_is_ever_sampled(speaker: Speaker, gap: Callable[..., float]) -> None:
    groups = speaker.groups(SAMPLING)
    samples = [sample for group in groups for sample in group.trajectories]
    assert len(samples) == 32
    assert {group.voice_tokens for group in groups} == {(3, 1, 4)}
    allowed = set(speaker.family.allowed_token_ids)
    assert all(set(sample.token_ids) <= allowed for sample in samples)
    assert {sample.finish_reason for sample in samples} >= {"stop"}
    for sample in samples:
        assert len(sample.speech_tokens) == len(sample.token_ids) - (sample.finish_reason == "stop")
        assert all(0 <= token < 20 for token in sample.speech_tokens)
        assert sample.text == ""
    assert gap(groups) <= 1e-4


def test_without_the_mask_text_would_be_sampled(speaker: Speaker) -> None:
    """Otherwise the test above would prove nothing."""
    (group, *_) = speaker.groups(SAMPLING.greedy())
    with torch.no_grad():
        logits = speaker.model(torch.tensor([group.layout.token_ids])).logits[0, -1]
    assert logits.softmax(-1)[list(speaker.family.allowed_token_ids)].sum() < 0.99


def test_the_stop_mask_and_the_familys_add_up(speaker: Speaker, gap: Callable[..., float]) -> None:
    groups = speaker.groups(replace(SAMPLING, min_new_tokens=6))
    assert all(len(sample.token_ids) > 6 for group in groups for sample in group.trajectories)
    assert gap(groups, stop_masked=6) <= 1e-4


def test_greedy_decoding_is_under_the_same_mask(speaker: Speaker, gap: Callable[..., float]) -> None:
    groups = speaker.groups(SAMPLING.greedy())
    for group in groups:
        (sample,) = group.trajectories
        best = speaker.distributions(group, sample).max(-1).values
        assert torch.allclose(best, torch.tensor(sample.logprobs), atol=1e-4)
    assert gap(groups) <= 1e-4
