"""Every family that speaks in a real engine: the learner's own log-probs, before and after all weights changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import pack
from learner.model.policy import Policy
from learner.model.sampler import SamplerSettings
from rollout.config import SamplingConfig
from rollout.engine.engine import RolloutEngine
from speech.families import load_family
from speech.families.causal import CausalSpeechFamily
from speech.records import EncodedAudio, Group, Prompt, Utterance
from speech.runtime.weights import Probe, WeightBucket
from tests.rollout.tiny_lm import CONFIG
from tests.speech.families.tts_checkpoints import OPTIONS, WRITERS

pytestmark = pytest.mark.slow

SAMPLING = SamplingConfig(group_size=6, temperature=0.9, max_new_tokens=30, min_new_tokens=2)
TEXTS = ("turn on the light", "stop", "play some music in the kitchen", "what is it")
VOICE = (3, 1, 4)


class Pair:
    """Learner and engine of one family."""

    def __init__(self, family: CausalSpeechFamily) -> None:
        self.family = family
        self.policy = Policy.load(family, ["language_model"], torch.float32)
        self.engine = RolloutEngine(family, replace(CONFIG))
        self.runner = asyncio.Runner()
        self.runner.run(self.engine.start())
        self.version = 0

    def sample(self) -> list[Group]:
        prompts, audio = [], []
        for i, text in enumerate(TEXTS):
            utterance = Utterance(id=f"u{i}", audio="", text=text, prompt_audio="voice.wav", prompt_text="good day")
            prompts.append(Prompt(id=f"0/u{i}", utterance=utterance, epoch=0, position=i, seed=100 * i + self.version))
            layout = self.family.layout(text, utterance.prompt_text, VOICE)
            audio.append(EncodedAudio(layout, torch.zeros(0, 64), None, 1.0, 0.5, voice_tokens=VOICE))
        return self.runner.run(self.engine.generate(prompts, audio, SAMPLING))

    @torch.no_grad()
    def gap(self, groups: list[Group]) -> float:
        """Largest |Δ log-prob| between what the engine reported and what the learner computes."""
        trained = [
            TrainGroup(group.layout, tuple(Sample(t.token_ids, t.logprobs, 0.0) for t in group.trajectories), index)
            for index, group in enumerate(groups)
        ]
        batch = pack(trained)
        family = self.family
        sampler = SamplerSettings(
            SAMPLING.temperature, SAMPLING.min_new_tokens, family.stop_token_ids, family.allowed_token_ids
        )
        found = self.policy(batch, {}, sampler, 64).logprobs
        return float((found - batch.behaviour_logprobs).abs().max())

    @torch.no_grad()
    def publish_other_weights(self) -> list[str]:
        """Change every parameter and publish; the names of those that stayed what they were."""
        model = self.family.load_language_model()  # with transformers' own attention, as a reference
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.mul_(0.8).add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        ids = torch.randint(0, model.config.vocab_size, (2, 24), generator=generator)
        values = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
        probe = Probe(tuple(map(tuple, ids.tolist())), tuple(values.flatten().tolist()), 5e-5, 1e-4)
        tensors = {self.family.engine_name(name): p.detach().clone() for name, p in model.named_parameters()}
        self.version += 1
        self.runner.run(self.engine.update_weights(self.version, [WeightBucket.of(tensors)], probe))
        self.policy.language_model.load_state_dict(model.state_dict())
        return [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]

    def close(self) -> None:
        self.engine.shutdown()
        self.runner.close()


@pytest.fixture(scope="module", params=list(WRITERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    family = load_family(
        WRITERS[request.param](tmp_path_factory.mktemp(request.param) / "model"), options=OPTIONS.get(request.param)
    )
    assert isinstance(family, CausalSpeechFamily) and family.name == request.param
    pair = Pair(family)
    yield pair
    pair.close()


@pytest.mark.family_check("engine")
def test_learner_and_engine_agree_before_and_after_a_publication(pair: Pair) -> None:
    first = pair.sample()
    assert pair.gap(first) <= 1e-4
    assert pair.publish_other_weights() == []
    second = pair.sample()
    assert {t.version_first for group in second for t in group.trajectories} == {pair.version}
    assert pair.gap(second) <= 1e-4
    assert pair.gap(first) > 0.1, "the weights that were published are other weights"
    samples = [t for group in (*first, *second) for t in group.trajectories]
    allowed = set(pair.family.allowed_token_ids)
    assert all(set(t.token_ids) <= allowed for t in samples)
    if len(allowed) < 100:  # among 6,562 near-uniform tokens the one that stops is hardly drawn
        assert {t.finish_reason for t in samples} >= {"stop"}
