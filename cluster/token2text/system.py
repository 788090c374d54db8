"""The actors of `objective: token2text`: codecs that make tokens of recordings, and the gang that learns from them."""

from __future__ import annotations

from types import TracebackType

import ray

from cluster.actors.encoders import CodecPool
from cluster.actors.remote import get, standing
from cluster.actors.room import check_room
from cluster.actors.start import not_started, start_ray
from cluster.config import RunConfig
from cluster.preflight import gpus_wanted
from learner.gang import LearnerLostError, Token2TextGroup
from learner.token2text.model import Token2TextConfig
from learner.token2text.rank import Token2TextSpec
from rollout.environment import actor_environment
from speech.errors import PhaseTimeoutError, UserError
from speech.runtime.codec_source import resolved_source


class Token2TextSystem:
    """A context manager: leaving it ends every process it started. There is no engine: nothing is sampled.

    Attributes:
        codecs: the actors that make tokens of recordings.
        codec_size: number of the codec's tokens.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._learner: Token2TextGroup | None = None

    def __enter__(self) -> Token2TextSystem:
        config = self.config
        start_ray(config)
        try:
            check_room(gpus_wanted(config, training=True), config.engines.startup_timeout_s)
            self.codecs = CodecPool(resolved_source(config.model.codec or ""), config.encoder)
            self.codec_size, self._features = self.codecs.describe(config.engines.startup_timeout_s)
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ray.shutdown()

    def start_learner(self, start: str | Token2TextConfig) -> None:
        """Load or create the model on every rank.

        Args:
            start: folder of the model to go on from, or the shape of a new one.

        Raises:
            UserError: the folder is damaged, or reads another codec's tokens.
        """
        config = self.config
        if isinstance(start, str):
            known = Token2TextConfig.load(start).speech_vocabulary
            if known != self.codec_size:
                raise UserError(f"{start} reads {known} speech tokens; the codec {config.model.codec} "
                                f"has {self.codec_size}")  # fmt: skip
        features = None if isinstance(start, str) else self._features
        spec = Token2TextSpec(start, config.learner, config.token2text.training, config.steps, config.seed, features)
        self._learner = Token2TextGroup(spec, actor_environment(config.learner.threads))
        timeout = config.engines.startup_timeout_s
        try:
            get(self._learner.start(timeout), "learner start", timeout)
        except (LearnerLostError, PhaseTimeoutError) as error:
            ranks = {f"learner {rank}": actor for rank, actor in enumerate(self._learner.actors)}
            raise not_started(error, standing(ranks), timeout) from error

    @property
    def learner(self) -> Token2TextGroup:
        """The learner gang, once it was started."""
        assert self._learner is not None
        return self._learner
