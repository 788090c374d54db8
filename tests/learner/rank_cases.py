"""Configurations of the learner with something to learn from, and their updates on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from learner.batches.batch import Sample, TrainGroup
from learner.batches.plan import audio_of, plan_updates
from learner.config import LearnerConfig, LossConfig, Token2TextTrainingConfig
from learner.rank import LearnerRank
from learner.spec import RankSpec
from learner.token2text.plan import plan_token2text
from learner.token2text.rank import Token2TextRank, Token2TextSpec
from speech.records import EncodedAudio, PromptLayout
from tests.learner.losses.test_diffro import make_groups, spec_for
from tests.learner.ranks import run_ranks
from tests.learner.test_rank import VOCABULARY, make_batch, make_spec
from tests.learner.token2text.test_rank import CONFIG, corpus

STEPS = 2
MICRO_BATCH = 25
"""Positions: about one group."""


@dataclass(frozen=True)
class Models:
    """Folders: a speech language model with random weights, and a reward model."""

    policy: Path
    judge: Path


@dataclass(frozen=True)
class PolicyCase:
    """A configuration of `LearnerRank`, and the shape of its batch.

    Attributes:
        train: parts that learn.
        groups, replay: how many groups of each kind a step has.
        silent: indices of groups whose prompt holds no audio.
        long: indices of groups with a text that fits into hardly any speech (DiffRO).
        settings: fields of `LearnerConfig`, `DiffROConfig` and `RankSpec`.
    """

    objective: str
    train: tuple[str, ...] = ("language_model",)
    groups: int = 5
    replay: int = 0
    silent: tuple[int, ...] = ()
    long: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def spec(self, models: Models) -> RankSpec:
        """A learner whose micro-batches hold about one group each."""
        chosen: dict[str, Any] = {
            "objective": self.objective,
            "train": list(self.train),
            "micro_batch_tokens": MICRO_BATCH,
            **self.settings,
        }
        if self.objective in ("diffro", "combined"):
            return spec_for(models.policy, models.judge, **chosen)
        return make_spec(models.policy, **({"loss": LossConfig()} | chosen))

    def batch(self, step: int) -> tuple[list[TrainGroup], list[TrainGroup], dict[int, EncodedAudio]]:
        """A step's groups, replayed groups and encoded audio."""
        if self.objective in ("diffro", "combined"):
            groups = make_groups(self.groups, seed=step)
            for index in self.long:
                groups[index] = replace(groups[index], text_ids=(1, 2, 3, 4, 1, 2))
            return groups, [], {}
        groups, audio = make_batch(self.groups, seed=step)
        if self.objective == "sft":
            groups = [replace(g, samples=(_reference(g),)) for g in groups]
        replay, replay_audio = make_batch(self.replay, seed=100 + step)
        replay = [replace(g, samples=(_reference(g),), audio=g.audio + 100) for g in replay]
        audio |= {index + 100: item for index, item in replay_audio.items()}
        for index in self.silent:
            groups[index] = replace(groups[index], layout=PromptLayout((3, 7 + index, 4, 5), 0, 0))
            del audio[index]
        return groups, replay, {index: self._heard(index, item, step) for index, item in audio.items()}

    def _heard(self, index: int, item: EncodedAudio, step: int) -> EncodedAudio:
        """The audio as the encoder actors leave it for the parts that learn."""
        generator = torch.Generator().manual_seed(1000 * step + index)
        length = item.layout.audio_length
        if "encoder" in self.train:
            features = torch.randn(8 * length, 64, generator=generator)
            targets = torch.randint(6, VOCABULARY, (length,), generator=generator).tolist()
            return replace(item, embeddings=None, features=features, ctc_ids=tuple(targets))
        if "adaptor" in self.train:
            return replace(item, encoder_states=torch.randn(2 * length, 32, generator=generator))
        return item

    def run(self, models: Models, rank: int, world: int, meeting: str) -> dict[str, Any]:
        """Some steps; gradients by parameter of every optimiser update, metrics by step, and the new weights with the
        names of those that learn."""
        spec = self.spec(models)
        learner = LearnerRank(spec, rank, world, f"file://{meeting}")
        gradients = _record_gradients(learner.policy, learner.optimiser)
        metrics = []
        for step in range(1, STEPS + 1):
            groups, replay, audio = self.batch(step)
            updates, chosen = spec.config.updates_per_step, spec.config.diffro.filter
            shares = plan_updates(groups, replay, updates, world, chosen if learner.diffro else None)[rank]
            mine = {index: audio[index] for index in audio_of(shares)}
            metrics.append(learner.update(step, shares, mine).metrics)
        found = {"gradients": gradients, "metrics": metrics, **_weights(learner.policy)}
        learner.close()
        return found


@dataclass(frozen=True)
class Token2TextCase:
    """A configuration of `Token2TextRank`."""

    training: Token2TextTrainingConfig = field(default_factory=Token2TextTrainingConfig)
    items: int = 9
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, models: Models, rank: int, world: int, meeting: str) -> dict[str, Any]:
        """See `PolicyCase.run`."""
        config = LearnerConfig(**({"threads": 1, "lr": 1e-3, "micro_batch_tokens": MICRO_BATCH} | self.settings))
        spec = Token2TextSpec(CONFIG, config, self.training, 100, seed=1)
        learner = Token2TextRank(spec, rank, world, f"file://{meeting}")
        gradients = _record_gradients(learner.model, learner.optimiser)
        metrics = []
        for step in range(1, STEPS + 1):
            items = corpus(self.items, seed=step)
            share = plan_token2text(items, world, self.training.mixup, 5, step, self.training.noise)[rank]
            metrics.append(learner.update(step, share))
        found = {"gradients": gradients, "metrics": metrics, **_weights(learner.model)}
        learner.close()
        return found


Case = PolicyCase | Token2TextCase


def run_cases(cases: list[Case], models: Models, world: int, folder: Path) -> list[dict[str, Any]]:
    """What each case gives on `world` new processes; one after the other, so that the start is paid once."""
    folder.mkdir(parents=True, exist_ok=True)
    run_ranks(_run_on_rank, world, world, cases, models, str(folder))
    return torch.load(folder / "found", weights_only=True)  # type: ignore[no-any-return]


def _run_on_rank(rank: int, world: int, cases: list[Case], models: Models, folder: str) -> None:
    found = [case.run(models, rank, world, f"{folder}/meet-{i}") for i, case in enumerate(cases)]
    if rank == 0:
        torch.save(found, f"{folder}/found")


def _reference(group: TrainGroup) -> Sample:
    return Sample(group.samples[0].token_ids, (), 1.0)


def _record_gradients(module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    found: list[dict[str, torch.Tensor]] = []

    def keep(*_: object) -> None:
        found.append(
            {
                name: p.grad.full_tensor().clone()  # type: ignore[union-attr, operator]
                for name, p in module.named_parameters()
                if p.grad is not None
            }
        )

    optimiser.register_step_pre_hook(keep)
    return found


def _weights(module: torch.nn.Module) -> dict[str, Any]:
    """All parameters in full, and the names of those that learn."""
    parameters = dict(module.named_parameters())
    return {
        "weights": {name: p.detach().full_tensor().clone() for name, p in parameters.items()},  # type: ignore[operator]
        "trained": [name for name, p in parameters.items() if p.requires_grad],
    }
