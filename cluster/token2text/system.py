"""The actors of `objective: token2text`: codecs that make tokens of recordings, and the gang that learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import ray

from cluster.actors.remote import contiguous, get
from cluster.actors.start import start_ray
from cluster.config import RunConfig
from learner.gang import Token2TextGroup
from learner.token2text.model import Token2TextConfig
from learner.token2text.rank import Token2TextSpec
from rollout.actors import CodecActor
from rollout.environment import actor_environment, encoder_options
from speech.errors import UserError
from speech.records import Utterance


class Token2TextSystem:
    """A context manager: leaving it ends every process it started. There is no engine: nothing is sampled.

    Attributes:
        codec_size: number of the codec's tokens.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._learner: Token2TextGroup | None = None

    def __enter__(self) -> Token2TextSystem:
        config = self.config
        start_ray(config)
        try:
            folder = str(Path(config.model.codec or "").resolve())
            self._codecs = [
                CodecActor.options(**encoder_options(config.encoder)).remote(  # type: ignore[attr-defined]
                    folder, config.encoder
                )
                for _ in range(config.encoder.count)
            ]
            calls = [codec.size.remote() for codec in self._codecs]
            self.codec_size: int = get(calls, "codec start", config.engines.startup_timeout_s)[0]
            self._features: np.ndarray | None = get([self._codecs[0].features.remote()], "codec features", 60.0)[0]
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
        get(self._learner.start(timeout), "learner start", timeout)

    @property
    def learner(self) -> Token2TextGroup:
        """The learner gang, once it was started."""
        assert self._learner is not None
        return self._learner

    def tokenise(self, utterances: Sequence[Utterance], timeout: float | None) -> list[tuple[int, ...]]:
        """Codec ids of each utterance's recording.

        Raises:
            InputError: naming every recording that cannot be used, and why.
        """
        shares = contiguous(utterances, len(self._codecs))
        calls = [codec.tokenise.remote(list(s)) for codec, s in zip(self._codecs, shares, strict=True) if s]
        return [tokens for part in get(calls, "encode recordings", timeout) for tokens in part]

    def encoded_total(self) -> int:
        """Recordings that went through the codec since the start."""
        return sum(get([codec.encoded_total.remote() for codec in self._codecs], "codec count", 60.0))
