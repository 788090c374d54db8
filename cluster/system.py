"""Starting and stopping everything that a run consists of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType

import ray

from cluster.actors.encoders import AudioEncoderPool, EncoderPool, VoiceEncoderPool
from cluster.actors.leftovers import free_leftovers_on, leave_ray
from cluster.actors.listener import Listener
from cluster.actors.model import ModelRef
from cluster.actors.placement import Placement, shares_gpus
from cluster.actors.remote import get, standing
from cluster.actors.rewards import RewardPool
from cluster.actors.room import check_room
from cluster.actors.roster import StartError
from cluster.actors.scaling import PoolScaler, waiting_shares
from cluster.actors.start import not_started, start_ray
from cluster.config import RunConfig
from cluster.fleet.fleet import EngineFleet
from cluster.fleet.rollout_future import FleetError
from cluster.judges.vllm import hearing_family
from cluster.monitoring.timeline import gather
from cluster.preflight import gpus_wanted
from learner.config import SAMPLED_OBJECTIVES
from learner.gang import LearnerGroup, LearnerLostError
from learner.spec import RankSpec
from rewards.config import SoundConfig
from rewards.listening.judge import check_second_judge
from rewards.pipeline import CodecFactory
from rollout.encoders.encoder import EncoderMode
from rollout.encoders.voices import VoiceMode
from rollout.environment import actor_environment
from speech.codecs import load_codec
from speech.errors import PhaseTimeoutError, UserError, last_line
from speech.families import LanguageModelFamily, SpeechFamily, load_family
from speech.runtime.codec_source import resolved_source
from speech.runtime.hub import model_folder, pinned
from speech.runtime.spans import Span

logger = logging.getLogger(__name__)

FAILED_STARTS = (FleetError, StartError, LearnerLostError, PhaseTimeoutError, ray.exceptions.RayActorError)
"""What an actor that does not start comes to; the settings that it got are the user's to mend."""


class System:
    """The actors of a run. A context manager: leaving it ends every process it started.

    Attributes:
        family: the model's family, for token ids and text; the controller loads no weights.
        encoders: the actors that make prompts of utterances.
        listener: what hears the speech of evaluations; None in ASR, or when nothing is evaluated.
    """

    def __init__(self, config: RunConfig, training: bool = True) -> None:
        self.config = config
        self.training = training
        self.family = run_family(config, training)
        self._model = ModelRef(pinned(config.model.path), config.model.family, config.model.options)
        self.encoders: EncoderPool
        self._fleet: EngineFleet | None = None
        self._learner: LearnerGroup | None = None
        self._rewards: RewardPool | None = None
        self._scalers: list[PoolScaler] = []
        self.listener: Listener | None = None

    def __enter__(self) -> System:
        config, timeout = self.config, self.config.engines.startup_timeout_s
        start_ray(config, config.rewards.sound.threads if listens(config, self.training) else 0)
        try:
            check_room(gpus_wanted(config, self.training), timeout)
            self._placement, colocated = Placement(config), shares_gpus(config)
            # Everything loads at the same time: an engine takes longest.
            self._fleet = EngineFleet(self._model, config.engines, self._placement.engine, colocated)
            self.encoders = self._encoders()
            waiting = self.encoders.start()
            # Without a learner there is no publication to wait for: the checkpoint is what is to be evaluated.
            version = None if self.training else 0
            if not colocated:
                self.fleet.start(version)
            if self.training:
                loading = self._start_learner()
                waiting += loading
                if colocated:
                    get(loading, "learner start", timeout)
                    self.learner.set_onloaded(onloaded=False)
            if colocated:  # not before the learner has left: an engine takes what it finds free
                self.fleet.start(version)
            if self.training and config.objective in SAMPLED_OBJECTIVES:
                self._rewards = RewardPool(config.rewards, codec_factory(config), self._model.load_family)
            if listens(config, self.training):
                codec = codec_factory(config)
                assert codec is not None
                self.listener = Listener(config.rewards, codec, quality=not self.training)
                waiting += self.listener.start()
            self._scalers = self._pool_scalers()
            get(waiting, "start", timeout)
            self.fleet.ready()
        except FAILED_STARTS as error:
            standing = self._standing()
            logger.info("the run does not start", exc_info=error)
            self.close()
            raise not_started(error, standing, timeout) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engines in an orderly way, then Ray on this machine, or our job on a cluster that others started, and
        free what those that did not end so have left."""
        if self._fleet is not None and ray.is_initialized():
            try:
                self._fleet.shutdown()
            except (TimeoutError, ray.exceptions.RayError) as error:
                logger.warning("engines did not shut down in order, they are killed: %s", error)
        nodes = set() if self._fleet is None else self._fleet.nodes()
        if ray.is_initialized():
            nodes |= self._end_judges()
        if self._learner is not None and ray.is_initialized():
            self._learner.close()  # its last publication may lie in the shared memory of its node
            nodes |= set() if self._learner.node is None else {self._learner.node}
        leave_ray(nodes)

    def _end_judges(self) -> set[str]:
        """End the actors with a judge that has an engine; the nodes on which these have run."""
        found = set()
        for pool, judges in (
            (self._rewards, [self.config.rewards.sound.judge]),
            (self.listener, [self.config.rewards.sound.judge, self.config.rewards.sound.second_judge]),
        ):
            if pool is not None and any(judge.kind == "vllm" for judge in judges):
                found |= pool.nodes()
                pool.close()
        return found

    @property
    def fleet(self) -> EngineFleet:
        """The rollout engines."""
        assert self._fleet is not None
        return self._fleet

    @property
    def learner(self) -> LearnerGroup:
        """The learner gang; there is none in a system that only evaluates."""
        assert self._learner is not None
        return self._learner

    @property
    def rewards(self) -> RewardPool:
        """The reward actors; there are none without rollouts."""
        assert self._rewards is not None
        return self._rewards

    def spans(self) -> dict[str, list[Span]]:
        """What each actor did since the last call, by a name such as `engine 0`."""
        ranks = {f"learner {rank}": actor for rank, actor in enumerate(self.learner.actors)}
        found = gather(self.fleet.actors() | ranks) | self.encoders.spans()
        return found | ({} if self._rewards is None else self._rewards.spans())

    def rescale(
        self, controller: Sequence[Span], actors: Mapping[str, Sequence[Span]], start: float, end: float
    ) -> None:
        """Let the pools of encoders and reward actors grow or shrink, as the step in [start, end] says.

        Args:
            controller: spans of the controller's phases.
            actors: from `spans`.
            start, end: seconds since the epoch.
        """
        waiting = waiting_shares(controller, start, end)
        for scaler in self._scalers:
            scaler.rescale(waiting, actors, start, end)

    def pool_sizes(self) -> dict[str, int]:
        """Actors that can work now, by pool."""
        sizes = {"encoders": self.encoders.serving()}
        return sizes if self._rewards is None else sizes | {"reward_actors": self._rewards.serving()}

    def _standing(self) -> str:
        """Of the actors that were asked for, as Ray sees them."""
        if not ray.is_initialized():
            return ""
        actors = {str(m): m.actor for m in self._fleet.replicas() if m.running} if self._fleet is not None else {}
        if hasattr(self, "encoders"):
            actors |= {f"encoder {i}": actor for i, actor in enumerate(self.encoders.actors)}
        if self._learner is not None:
            actors |= {f"learner {rank}": actor for rank, actor in enumerate(self._learner.actors)}
        return standing(actors)

    def stop_learner(self) -> None:
        """Kill the gang, and where GPUs are shared let the engines make room for the next one."""
        self.learner.close()
        if shares_gpus(self.config):
            self.fleet.sleep(self.config.engines.generate_timeout_s)

    def restart_learner(self) -> None:
        """A new gang in place of one that was stopped, with the weights that the run began with.

        Raises:
            LearnerLostError: the new one is lost too.
        """
        timeout, left = self.config.engines.startup_timeout_s, self.learner.node
        try:
            get(self._start_learner(), "learner start", timeout)
        except (ray.exceptions.RayActorError, TimeoutError) as error:
            raise LearnerLostError(f"learner start: {last_line(error)}") from error
        if left is not None:
            free_leftovers_on([left])

    def _start_learner(self) -> list[ray.ObjectRef]:
        config = self.config
        environment = actor_environment(config.learner.threads)
        self._learner = LearnerGroup(self._rank_spec(), environment, self._placement.rank)
        return self._learner.start(config.engines.startup_timeout_s)

    def _encoders(self) -> EncoderPool:
        config, model, options = self.config, self._model, self._placement.encoder
        if config.model.codec is not None:
            mode: VoiceMode = "target" if config.objective == "sft" else "prompt"
            return VoiceEncoderPool(model, resolved_source(config.model.codec), config.encoder, mode, options)
        trained = config.learner.train
        parts: EncoderMode = "features" if "encoder" in trained else "states" if "adaptor" in trained else "embeddings"
        return AudioEncoderPool(model, config.encoder, parts, options)

    def _pool_scalers(self) -> list[PoolScaler]:
        encoder, rewards = self.config.encoder, self.config.rewards
        scalers = [PoolScaler(self.encoders, "encoder", "encode", encoder.min_count, encoder.max_count)]
        if self._rewards is not None:
            scalers.append(PoolScaler(self._rewards, "rewards", "reward", rewards.min_count, rewards.max_count))
        return scalers

    def _rank_spec(self) -> RankSpec:
        config, model = self.config, self._model
        return RankSpec(
            model=model.path,
            family=model.family,
            objective=config.objective,
            config=config.learner,
            temperature=config.sampling.temperature,
            min_new_tokens=config.sampling.min_new_tokens,
            stop_ids=self.family.stop_token_ids,
            total_steps=config.steps,
            replay_weight=config.data.replay_weight,
            seed=config.seed,
            allowed_token_ids=self.family.allowed_token_ids,
            speech_ids=self.family.speech_ids if isinstance(self.family, SpeechFamily) else range(0),
        )


def run_family(config: RunConfig, training: bool = True) -> LanguageModelFamily:
    """The family of the run's model, whose checkpoint is looked at but not loaded.

    Raises:
        UserError: an incomplete model, an unknown option, or a model and a codec that do not go together.
    """
    family = load_family(model_folder(config.model.path), config.model.family, config.model.options)
    if not isinstance(family, SpeechFamily):
        if config.model.codec is not None:
            raise UserError(f"model.codec: family {family.name!r} hears and does not speak; it needs no codec")
        return family
    if config.model.codec is None:
        raise UserError(f"model.codec: family {family.name!r} speaks; name the folder of its codec, {family.codec!r}")
    _check_judges(config.rewards.sound)
    if listens(config, training):
        check_second_judge(config.rewards.sound)
    if config.learner.train != ["language_model"]:
        raise UserError(f"learner.train: family {family.name!r} has nothing but its language_model to train")
    return family


def _check_judges(sound: SoundConfig) -> None:
    """Look at the checkpoints of judges that are families of ours, before an actor is started for them.

    Raises:
        UserError: see `hearing_family`.
    """
    for key, judge in (("judge", sound.judge), ("second_judge", sound.second_judge)):
        if judge.kind == "vllm":
            hearing_family(judge, key)


def listens(config: RunConfig, training: bool) -> bool:
    """Whether speech will be evaluated, for which both judges must be there."""
    if not training:
        return config.model.codec is not None
    evaluation, data = config.evaluation, config.data
    tested = data.test is not None and (evaluation.before or evaluation.after)
    return config.model.codec is not None and (tested or evaluation.every > 0)


def codec_factory(config: RunConfig) -> CodecFactory | None:
    """How a reward actor gets the run's codec; None for a model that hears."""
    return None if config.model.codec is None else partial(load_codec, resolved_source(config.model.codec))
