"""Starting and stopping everything that a run consists of."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from cluster.config import RunConfig
from cluster.fleet import EncoderPool, EngineFleet, ModelRef, get
from learner.actor import LearnerGroup
from learner.rank import RankSpec
from rewards.actor import RewardPool
from rollout.actors import actor_environment
from rollout.encoder import EncoderMode
from speech.errors import UserError
from speech.families import ModelFamily, load_family

logger = logging.getLogger(__name__)


class System:
    """The actors of a run. A context manager: leaving it ends every process it started.

    Attributes:
        family: the model's family, for token ids and text; the controller loads no weights.
        encoders: the audio-encoder actors.
    """

    def __init__(self, config: RunConfig, training: bool = True) -> None:
        self.config = config
        self.training = training
        self.family = asr_family(config)
        self._fleet: EngineFleet | None = None
        self._learner: LearnerGroup | None = None
        self._rewards: RewardPool | None = None

    def __enter__(self) -> System:
        config = self.config
        start_ray(config)
        try:
            model = ModelRef(str(Path(config.model.path).resolve()), config.model.family, config.model.options)
            # Everything loads at the same time: an engine takes longest.
            self._fleet = EngineFleet(model, config.engines)
            self.encoders = EncoderPool(model, config.encoder)
            # Without a learner there is no publication to wait for: the checkpoint is what is to be evaluated.
            waiting = self.fleet.start(None if self.training else 0) + self.encoders.start()
            if self.training:
                self._learner = LearnerGroup(self._rank_spec(model), actor_environment(config.learner.threads))
                waiting += self._learner.start(config.engines.startup_timeout_s)
            if self.training and config.objective == "grpo":
                self._rewards = RewardPool(config.rewards)
            get(waiting, "start", config.engines.startup_timeout_s)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engines in an orderly way, then Ray on this machine, or our job on a cluster that others started."""
        if self._fleet is not None and ray.is_initialized():
            try:
                self._fleet.shutdown()
            except (TimeoutError, ray.exceptions.RayError) as error:
                logger.warning("engines did not shut down in order, they are killed: %s", error)
        ray.shutdown()

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

    @property
    def encoder_mode(self) -> EncoderMode:
        """What the encoders must produce for the learner."""
        trained = self.config.learner.train
        if "encoder" in trained:
            return "features"
        return "states" if "adaptor" in trained else "embeddings"

    def _rank_spec(self, model: ModelRef) -> RankSpec:
        config = self.config
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
        )


def asr_family(config: RunConfig) -> ModelFamily:
    """The family of the run's model, whose checkpoint is looked at but not loaded.

    Raises:
        UserError: an incomplete model, an unknown option, or a model that speaks, which the loop cannot train yet.
    """
    family = load_family(config.model.path, config.model.family, config.model.options)
    if not isinstance(family, ModelFamily):
        raise UserError(f"model.path: family {family.name!r} is of a model that speaks; only ASR can be trained so far")
    return family


def start_ray(config: RunConfig) -> None:
    """Join the configured cluster, or start Ray here with room for every actor of the run.

    Raises:
        UserError: no cluster answers at the address.
    """
    if ray.is_initialized():
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = config.ray.address
    if address is None:
        # On one machine the actors take turns, so each gets its place however few cores there are; thread counts,
        # not Ray's bookkeeping, say how much of the machine an actor uses in its turn.
        engines, encoder, learner = config.engines, config.encoder, config.learner
        needed = engines.count * engines.threads + encoder.count * encoder.threads + learner.ranks
        cpus = config.ray.num_cpus or max(os.cpu_count() or 1, needed + config.rewards.workers)
        store = config.ray.object_store_mb
        settings |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": None if store is None else store * 2**20,
        }
    try:
        ray.init(address=address or "local", **settings)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from error
