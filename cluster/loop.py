"""The training loop, for every objective: encode → sample → score → learn → publish (2509.18569, §2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray

from cluster.config import RunConfig
from cluster.data import LedgerEntry, PromptSource
from cluster.fleet import EngineFleet
from cluster.phases import PhaseTimer
from cluster.publish import publish
from cluster.system import System
from cluster.token2text_data import targets_of
from learner.batch import Sample, TrainGroup
from learner.config import SAMPLED_OBJECTIVES
from learner.grouping import Selection, Target, select_groups
from learner.token2text import Token2TextConfig
from rewards.history import LengthHistory
from rollout.actors import EncodedRef
from speech.families import ModelFamily
from speech.records import Group, Prompt

MAX_RESAMPLING_ROUNDS = 3
"""How often a step draws other prompts in place of groups without variance, before it trains on what it has."""


@dataclass(slots=True)
class Batch:
    """What a step collected.

    Attributes:
        groups: scored groups, in the order they were sampled (empty in SFT).
        selection: what to train on, what was rejected and why.
        audio: encoded audio by the index that training groups use.
        replay: supervised groups mixed in.
    """

    groups: list[Group] = field(default_factory=list)
    selection: Selection = field(default_factory=Selection)
    audio: list[EncodedRef] = field(default_factory=list)
    replay: list[TrainGroup] = field(default_factory=list)

    @property
    def references(self) -> dict[int, ray.ObjectRef]:
        return {index: item.ref for index, item in enumerate(self.audio)}


@dataclass(slots=True)
class Step:
    """A finished step, as handed to the recorder."""

    number: int
    version: int
    batch: Batch
    metrics: dict[str, float]
    sample_gaps: dict[int, list[float]]

    @property
    def ledger(self) -> list[LedgerEntry]:
        selection = self.batch.selection
        return [LedgerEntry(prompt, "trained") for prompt in selection.trained] + [
            LedgerEntry(prompt, "rejected", reason) for prompt, reason in selection.rejected
        ]


class Trainer:
    """Runs steps. What it must remember between steps is `version`, `step`, the two prompt sources and, for
    the duration reward, the lengths of speech so far."""

    def __init__(
        self,
        config: RunConfig,
        system: System,
        source: PromptSource,
        replay_source: PromptSource | None,
        timer: PhaseTimer,
    ) -> None:
        self.config, self.system, self.timer = config, system, timer
        self.source, self.replay_source = source, replay_source
        self.learner = system.learner
        self.history = LengthHistory()
        self.sampled = config.objective in SAMPLED_OBJECTIVES
        reward_model = config.learner.diffro.reward_model if config.uses_diffro else None
        self.token2text = None if reward_model is None else Token2TextConfig.load(Path(reward_model))
        self.step = 0
        self.version = 0

    def run(self, after_step: Callable[[Step], bool]) -> None:
        """Train until `config.steps`, or until `after_step` (record, evaluate, save) answers False."""
        while self.step < self.config.steps:
            self.step += 1
            self.timer.start_step(self.step)
            batch = self.collect() if self.sampled else self.collect_references()
            with self.timer.phase("learn", self.config.learner.step_timeout_s):
                result = self.learner.update(self.step, batch.selection.groups, batch.replay, batch.references)
            metrics = dict(result.metrics)
            if self.sampled:
                metrics["publish/probe_gap"] = self.publish(self.version + 1)
            if not after_step(Step(self.step, self.version, batch, metrics, result.sample_gaps)):
                return

    def collect(self) -> Batch:
        """Sample and score groups until the batch is full, or as full as `zero_variance: resample` gets it."""
        batch = Batch()
        missing = self.config.data.batch_prompts
        rounds = MAX_RESAMPLING_ROUNDS if self.config.learner.zero_variance == "resample" else 1
        for _ in range(rounds):
            batch.selection.extend(self.sample(self.source.take(missing), batch))
            missing = self.config.data.batch_prompts - len(batch.selection.groups)
            if missing <= 0:
                break
        if self.replay_source is not None:
            prompts = self.replay_source.next_batch()
            batch.replay = self.references(prompts, batch)
        return batch

    def sample(self, prompts: list[Prompt], batch: Batch) -> Selection:
        """One round: encode each utterance once, draw its group, score it, turn rewards into advantages."""
        audio = self.encode(prompts)
        with self.timer.phase("generate", self.config.engines.generate_timeout_s) as phase:
            groups = self.fleet.generate(prompts, audio, self.config.sampling, phase.remaining())
        groups = [replace(g, past_lengths=self.history.lengths(g.prompt.utterance.id)) for g in groups]
        with self.timer.phase("reward"):
            groups = self.system.rewards.score(groups)
        for group in groups:
            self.history.add(group)
        learner = self.config.learner
        indices = range(len(batch.audio), len(batch.audio) + len(groups))
        batch.groups += groups
        batch.audio += audio
        keep = learner.zero_variance == "keep"
        return select_groups(groups, indices, learner.advantage, keep, self.targets(prompts))

    def targets(self, prompts: Sequence[Prompt]) -> list[Target] | None:
        """What the reward model of DiffRO should find in the speech of each prompt; None without DiffRO."""
        if self.token2text is None:
            return None
        utterances = [prompt.utterance for prompt in prompts]
        return [targets_of(self.token2text, utterance) for utterance in utterances]

    def collect_references(self) -> Batch:
        """A supervised batch: each prompt's only "sample" is its reference."""
        batch = Batch()
        prompts = self.source.next_batch()
        batch.selection.groups = self.references(prompts, batch)
        batch.selection.trained = [prompt.id for prompt in prompts]
        return batch

    def references(self, prompts: Sequence[Prompt], batch: Batch) -> list[TrainGroup]:
        first = len(batch.audio)
        batch.audio += self.encode(prompts)
        return [
            TrainGroup(
                batch.audio[first + i].layout,
                (Sample(self.reference(prompt, batch.audio[first + i]), (), 1.0),),
                first + i,
            )
            for i, prompt in enumerate(prompts)
        ]

    def reference(self, prompt: Prompt, encoded: EncodedRef) -> tuple[int, ...]:
        """Ids of the reference response: its transcript where the model hears, its speech where the model speaks."""
        family = self.system.family
        return tuple(family.target_ids(prompt.utterance)) if isinstance(family, ModelFamily) else encoded.target_ids

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedRef]:
        with self.timer.phase("encode", self.config.engines.generate_timeout_s) as phase:
            utterances = [prompt.utterance for prompt in prompts]
            return self.system.encoders.encode(utterances, phase.remaining(), for_learner=True)

    def publish(self, version: int) -> float:
        """Give the engines the learner's weights as `version`; the largest |Δ log-prob| of the proof."""
        with self.timer.phase("publish", self.config.publish.timeout_s) as phase:
            system, settings = self.system, self.config.publish
            vocabulary = len(system.family.tokenizer)
            gap = publish(version, self.learner, self.fleet, system.encoders, settings, vocabulary, phase)
        self.version = version
        return gap

    @property
    def fleet(self) -> EngineFleet:
        return self.system.fleet
