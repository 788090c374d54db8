"""Families that hear in a real engine: its log-probs are those of the learner, for recordings of several lengths."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import pack
from learner.model.policy import Policy
from learner.model.sampler import SamplerSettings
from rollout.config import EncoderConfig, SamplingConfig
from rollout.encoders.encoder import UtteranceEncoder
from rollout.engine.engine import RolloutEngine
from speech.families import ModelFamily, load_family
from speech.records import EncodedAudio, Group, Prompt, Utterance
from speech.runtime.weights import Probe, WeightBucket
from tests.rollout.tiny_lm import CONFIG
from tests.speech.families.hearing_checkpoints import wave
from tests.speech.families.writers import ENGINE

pytestmark = pytest.mark.slow

SAMPLING = SamplingConfig(group_size=3, temperature=0.8, max_new_tokens=12, min_new_tokens=2)
SECONDS = (0.2, 1.37, 5.0)


def load_audio(utterance: Utterance, rate: int) -> np.ndarray:
    return wave(float(utterance.id), seed=1)


class Hearer:
    """A family's checkpoint in an engine and in the learner's policy."""

    def __init__(self, folder: Path, name: str) -> None:
        family = load_family(ENGINE[name](folder))
        assert isinstance(family, ModelFamily)
        self.family = family
        self.policy = Policy.load(family, ["language_model"], torch.float32)
        utterances = [Utterance(id=str(s), audio=f"{s}.wav", text="x", language="en") for s in SECONDS]
        encoder = UtteranceEncoder(family, EncoderConfig(), load_audio)
        encoded = encoder.encode(encoder.load(utterances), utterances)
        self.audio = [item for item in encoded if isinstance(item, EncodedAudio)]
        assert len(self.audio) == len(SECONDS)
        self.prompts = [
            Prompt(id=f"0/{u.id}", utterance=u, epoch=0, position=i, seed=100 * i) for i, u in enumerate(utterances)
        ]
        self.runner = asyncio.Runner()
        self.engine = RolloutEngine(family, replace(CONFIG, max_model_len=640, max_num_batched_tokens=2048))
        self.runner.run(self.engine.start())

    def groups(self) -> list[Group]:
        return self.runner.run(self.engine.generate(self.prompts, self.audio, SAMPLING))

    @torch.no_grad()
    def learned(self, groups: list[Group], audio: list[EncodedAudio]) -> torch.Tensor:
        """The learner's log-probs of all samples, in one row."""
        train = [
            TrainGroup(g.layout, tuple(Sample(t.token_ids, t.logprobs, 0.0) for t in g.trajectories), audio=i)
            for i, g in enumerate(groups)
        ]
        stops = self.family.stop_token_ids
        sampler = SamplerSettings(SAMPLING.temperature, SAMPLING.min_new_tokens, stops, self.family.allowed_token_ids)
        return self.policy(pack(train), dict(enumerate(audio)), sampler, 64).logprobs

    def close(self) -> None:
        self.engine.shutdown()
        self.runner.close()


def sampled(groups: list[Group]) -> torch.Tensor:
    return torch.tensor([p for g in groups for t in g.trajectories for p in t.logprobs])


@pytest.fixture(scope="module", params=ENGINE)
def hearer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hearer]:
    hearer = Hearer(tmp_path_factory.mktemp(request.param) / "model", request.param)
    yield hearer
    hearer.close()


@pytest.mark.family_check("engine")
@pytest.mark.family_check("audio")
def test_engine_and_learner_agree_also_after_a_publication_of_every_parameter(hearer: Hearer) -> None:
    groups = hearer.groups()
    before = hearer.learned(groups, hearer.audio)
    assert before.std() > 0.3, "the distributions must be far enough from uniform to tell"
    assert (before - sampled(groups)).abs().max() <= 1e-4
    assert [len(g.layout.token_ids) for g in groups] == [len(a.layout.token_ids) for a in hearer.audio]

    # Other audio of the same length: the positions are the same, the log-probs are not.
    deaf = [replace(item, embeddings=item.embeddings.flip(0)) for item in hearer.audio if item.embeddings is not None]
    assert (hearer.learned(groups, deaf) - before).abs().max() > 1e-2

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in hearer.policy.language_model.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    publish(hearer)
    assert (hearer.learned(groups, hearer.audio) - before).abs().max() > 1e-2
    groups = hearer.groups()
    assert (hearer.learned(groups, hearer.audio) - sampled(groups)).abs().max() <= 1e-4


def publish(hearer: Hearer) -> None:
    """All parameters, under the engine's names, with a probe that transformers' own forward answers."""
    learned = hearer.policy.language_model
    tensors = {hearer.family.engine_name(name): p.detach().clone() for name, p in learned.named_parameters()}
    plain = hearer.family.load_language_model()
    before = probe_values(plain)
    plain.load_state_dict(dict(learned.named_parameters()), strict=False)
    probe = Probe(PROBES, probe_values(plain), 5e-5, 1e-4, before)
    hearer.runner.run(hearer.engine.update_weights(1, [WeightBucket.of(tensors)], probe))


PROBES = tuple(
    tuple(row) for row in torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(9)).tolist()
)


@torch.no_grad()
def probe_values(model: PreTrainedModel) -> tuple[float, ...]:
    ids = torch.tensor(PROBES)
    logprobs = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    return tuple(logprobs.gather(2, ids[:, 1:, None]).flatten().tolist())
