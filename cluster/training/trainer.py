"""The training loop, for every objective: encode → sample → score → learn → publish (2509.18569, §2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.actors.placement import shares_gpus
from cluster.config import RunConfig
from cluster.data.intake import Intake, PromptBatch
from cluster.data.prompts import PromptSource
from cluster.data.rejections import Rejections
from cluster.data.targets import targets_of
from cluster.monitoring.phases import PhaseTimer
from cluster.system import System
from cluster.training.admission import Admission
from cluster.training.batch import Step, TrainingBatch
from cluster.training.length_history import LengthHistory
from cluster.training.publish import Proof, publish
from cluster.training.rollouts import RolloutBatch, Rollouts
from learner.batches.advantage import is_over_batch
from learner.batches.batch import Sample, TrainGroup
from learner.batches.grouping import UNSCORED, Selection, Target, select_groups
from learner.config import SAMPLED_OBJECTIVES
from learner.gang import StepUpdate
from learner.token2text.model import Token2TextConfig
from rollout.actors import EncodedRef
from rollout.config import room_complaint
from speech.errors import last_line
from speech.families import ModelFamily
from speech.records import BadUtterance, Group, Prompt

MAX_RESAMPLING_ROUNDS = 3
"""How often a step draws other prompts in place of groups without variance, before it trains on what it has."""


class Trainer:
    """Runs steps. What it must remember between steps is `version`, `step`, the two prompt sources, the prompts of
    batches in flight and, for the duration reward, the lengths of speech so far."""

    def __init__(
        self,
        config: RunConfig,
        system: System,
        source: PromptSource,
        replay_source: PromptSource | None,
        timer: PhaseTimer,
        rejections: Rejections,
    ) -> None:
        self.config, self.system, self.timer = config, system, timer
        self.source, self.replay_source, self.rejections = source, replay_source, rejections
        self.learner = system.learner
        self.history = LengthHistory()
        self.colocated = shares_gpus(config)
        self.sampled = config.objective in SAMPLED_OBJECTIVES
        reward_model = config.learner.diffro.reward_model if config.uses_diffro else None
        self.token2text = None if reward_model is None else Token2TextConfig.load(Path(reward_model))
        self.over_batch = self.sampled and is_over_batch(config.learner.advantage)
        self.rollout_batches: deque[RolloutBatch] = deque()
        """In flight, oldest first."""
        self.waiting: deque[PromptBatch[EncodedRef]] = deque()
        """Prompts of batches that were in flight when the run was saved, to be sampled anew."""
        self.step = 0
        self.version = 0
        self.intake = Intake(source, self.encode, self.refusal if self.sampled else self.no_reference, rejections)
        if replay_source is not None:
            self.replay_intake = Intake(replay_source, self.encode, self.no_reference, rejections)
        self.proof: Proof | None = None
        """Of the last publication."""

    def run(self, after_step: Callable[[Step], bool]) -> None:
        """Train until `config.steps`, or until `after_step` (record, evaluate, save) answers False.

        Batch w is trained by step w + 1 at version w. With `staleness: S` the batches up to w + S are sampled and
        scored meanwhile; with S = 0 each waits for the publication before it.
        """
        self.admission = Admission(self.config.staleness, self.config.steps, self.step)
        with Rollouts(self.config, self.system, self.timer, self.intake.fill) as self.rollouts:
            while self.step < self.config.steps:
                self.step += 1
                self.timer.start_step(self.step)
                # Engines that share the learner's devices hold them until the last sample.
                update = self.learner.begin(self.step, hold=self.colocated)
                batch = self.collect(update) if self.sampled else self.collect_references(update)
                self.onload_learner()
                with self.timer.phase("learn", self.config.learner.step_timeout_s):
                    result = update.finish(batch.replay, batch.references)
                metrics = dict(result.metrics)
                if self.sampled:
                    proof = self.publish(self.version + 1)
                    metrics["publish/probe_gap"] = proof.gap
                    metrics["publish/probe_tolerance"] = proof.tolerance
                if not after_step(Step(self.step, self.version, batch, metrics, result.sample_gaps)):
                    return

    def collect(self, update: StepUpdate) -> TrainingBatch:
        """The oldest batch, scored; topped up where utterances turned out to be bad after they were encoded, and as far
        as `zero_variance: resample` gets it. The update gets each part of it as soon as it is scored."""
        size = self.config.data.batch_prompts
        for number in self.admission.admit(self.version):
            self.rollout_batches.append(self.rollout_batch(number, size))
            if self.waiting:
                saved = self.waiting.popleft()
                self.rollout_batches[-1].prompts, self.rollout_batches[-1].rejected = saved.prompts, saved.rejected
            self.rollouts.start(self.rollout_batches[-1])
        rollout_batch, batch = self.rollout_batches[0], TrainingBatch()
        with self.timer.phase("wait", waiting=True), self.system.fleet.learner_blocked():
            missing = self.add(rollout_batch, batch, update)
        self.rollout_batches.popleft()
        self.admission.train(rollout_batch.number, self.version)
        for _ in range(MAX_RESAMPLING_ROUNDS - 1):
            if self.config.learner.zero_variance == "resample":
                missing = size - len(batch.selection.groups)
            if missing <= 0:
                break
            # Batches in flight take from the same source: first they, whoever is faster.
            self.wait_until_filled()
            rollout_batch = self.rollout_batch(rollout_batch.number, missing)
            with self.system.fleet.learner_blocked():
                self.rollouts.run(rollout_batch)
            missing = self.add(rollout_batch, batch, update)
        if self.replay_source is not None:
            replay = PromptBatch[EncodedRef](self.config.data.replay_batch)
            self.replay_intake.fill(replay)
            batch.replay = self.references(replay, batch)
        return batch

    def in_flight(self) -> list[PromptBatch[EncodedRef]]:
        """The prompts that were dealt out and are still to be trained, batch by batch: with the sources' positions
        they are the whole position in the data."""
        self.wait_until_filled()
        return [*self.rollout_batches, *self.waiting]

    def wait_until_filled(self) -> None:
        """Wait until no batch in flight takes prompts from the source; encoding bounds itself."""
        pending = [rollout_batch for rollout_batch in self.rollout_batches if not rollout_batch.filled.is_set()]
        if pending:
            with self.timer.phase("wait", waiting=True):
                for rollout_batch in pending:
                    rollout_batch.filled.wait()

    def rollout_batch(self, number: int, size: int) -> RolloutBatch:
        return RolloutBatch(size=size, number=number, past_lengths=self.history.snapshot())

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedRef | BadUtterance]:
        """Run the encoder once over the prompts' utterances."""
        with self.timer.phase("encode", self.config.engines.generate_timeout_s) as phase:
            utterances = [prompt.utterance for prompt in prompts]
            return self.system.encoders.encode(utterances, phase.remaining(), for_learner=True)

    def refusal(self, prompt: Prompt, encoded: EncodedRef) -> str | None:
        """Why an encoded prompt cannot be sampled, or None."""
        positions, config = len(encoded.layout.token_ids), self.config
        complaint = room_complaint(positions, config.sampling.max_new_tokens, config.engines.max_model_len)
        return None if complaint is None else f"{encoded.seconds:.1f} s: {complaint}"

    def no_reference(self, prompt: Prompt, encoded: EncodedRef) -> str | None:
        """Why an encoded prompt has no reference response, or None."""
        try:
            self.reference(prompt, encoded)
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer raises; one that hits all ends the run
            return f"text: {type(error).__name__}: {last_line(error)}"
        return None

    def add(self, rollout_batch: RolloutBatch, batch: TrainingBatch, update: StepUpdate) -> int:
        """Turn the rewards of a batch into advantages, part by part as they come, and refuse what is too old to be
        trained.

        Returns:
            How many prompts were lost on the way: their utterances turned out to be bad, or fewer than two of their
            samples have a reward.
        """
        rollout_batch.filled.wait()
        batch.bad += [(prompt.id, reason) for prompt, reason in rollout_batch.rejected]
        bad: list[BadUtterance] = []
        unscored: list[str] = []
        groups: dict[int, Group] = {}
        prompts = iter(zip(rollout_batch.prompts, rollout_batch.audio, strict=True))
        for part in rollout_batch.scored:
            for outcome in part.result():
                prompt, audio = next(prompts)
                if isinstance(outcome, BadUtterance):
                    bad.append(outcome)
                    batch.bad.append((prompt.id, outcome.reason))
                else:
                    groups[len(batch.audio)] = outcome
                    batch.audio.append(audio)
            if self.over_batch and part is not rollout_batch.scored[-1]:
                continue
            batch.groups += groups.values()
            selection = self.select(groups)
            groups.clear()
            batch.selection.extend(selection)
            unscored += [f"prompt {name}: {why}" for name, why in selection.rejected if why.startswith(UNSCORED)]
            update.add(selection.groups, batch.references)
        self.rejections.judge(0, bad)
        self.rejections.unscored(unscored, self.system.rewards.lethal)
        return len(bad) + len(unscored)

    def select(self, groups: Mapping[int, Group]) -> Selection:
        """What can be trained of scored groups, by the index of their audio."""
        fresh: dict[int, Group] = {}
        stale = Selection()
        for index, group in groups.items():
            self.history.add(group)
            oldest = min(t.version_first for t in group.trajectories)
            if self.admission.too_old(oldest, self.version):
                reason = f"stale: {self.version - oldest} versions behind, with a bound of {self.config.staleness}"
                stale.rejected.append((group.prompt.id, reason))
            else:
                fresh[index] = group
        learner, chosen = self.config.learner, list(fresh.values())
        targets = self.targets([group.prompt for group in chosen])
        selection = select_groups(chosen, list(fresh), learner.advantage, learner.zero_variance == "keep", targets)
        stale.extend(selection)
        return stale

    def targets(self, prompts: Sequence[Prompt]) -> list[Target] | None:
        """What the reward model of DiffRO should find in the speech of each prompt; None without DiffRO."""
        if self.token2text is None:
            return None
        utterances = [prompt.utterance for prompt in prompts]
        return [targets_of(self.token2text, utterance) for utterance in utterances]

    def collect_references(self, update: StepUpdate) -> TrainingBatch:
        """A supervised batch: each prompt's only "sample" is its reference."""
        batch = TrainingBatch()
        taken = PromptBatch[EncodedRef](self.config.data.batch_prompts)
        self.intake.fill(taken)
        batch.selection.groups = self.references(taken, batch)
        batch.selection.trained = [prompt.id for prompt in taken.prompts]
        batch.bad = [(prompt.id, reason) for prompt, reason in taken.rejected]
        update.add(batch.selection.groups, batch.references)
        return batch

    def references(self, taken: PromptBatch[EncodedRef], batch: TrainingBatch) -> list[TrainGroup]:
        first = len(batch.audio)
        batch.audio += taken.audio
        return [
            TrainGroup(
                batch.audio[first + i].layout,
                (Sample(self.reference(prompt, batch.audio[first + i]), (), 1.0),),
                first + i,
            )
            for i, prompt in enumerate(taken.prompts)
        ]

    def reference(self, prompt: Prompt, encoded: EncodedRef) -> tuple[int, ...]:
        """Ids of the reference response: its transcript where the model hears, its speech where the model speaks."""
        family = self.system.family
        return tuple(family.target_ids(prompt.utterance)) if isinstance(family, ModelFamily) else encoded.target_ids

    def publish(self, version: int) -> Proof:
        """Give the engines the learner's weights as `version`."""
        self.onload_learner()
        config, system = self.config, self.system
        budget, in_flight = config.publish.timeout_s, config.update == "inflight"
        if self.rollout_batches and not in_flight:
            budget += config.engines.generate_timeout_s  # running samples end first
        with self.timer.phase("publish", budget) as phase:
            vocabulary = len(system.family.tokenizer)
            fleet, encoders = system.fleet, system.encoders
            settings, over = config.publish, self.offload_learner
            proof = publish(
                version, self.learner, fleet, encoders, settings, vocabulary, phase, in_flight, over, self.proof
            )
        self.version, self.proof = version, proof
        return proof

    def onload_learner(self, keep_weights: bool = False) -> None:
        """Offload the engines and onload the learner; nothing happens unless they share GPUs."""
        if self.colocated:
            with self.timer.phase("switch", self.config.engines.generate_timeout_s) as phase:
                self.system.fleet.sleep(phase.remaining(), keep_weights)
                self.learner.set_onloaded(onloaded=True)

    def offload_learner(self) -> None:
        """Offload the learner; engines come back with the publication that follows."""
        if self.colocated:
            with self.timer.phase("switch"):
                self.learner.set_onloaded(onloaded=False)

    @contextmanager
    def learner_onloaded(self) -> Iterator[None]:
        """Onload the learner for the block, for a checkpoint; engines keep their weights in host memory meanwhile."""
        self.onload_learner(keep_weights=True)
        yield
        self.offload_learner()
        if self.colocated:
            self.system.fleet.wake(self.config.engines.update_timeout_s)
