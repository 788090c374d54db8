"""The actors that sample: pools of audio encoders and of rollout engines, seen from the controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import ray

from cluster.placement import Placement
from rollout.actors import (
    EncodedRef,
    EncoderActor,
    EngineActor,
    VoiceActor,
    encoder_options,
    engine_options,
)
from rollout.config import EncoderConfig, EngineConfig, SamplingConfig
from rollout.encoder import EncoderMode
from rollout.stats import EngineStats
from speech.errors import UserError
from speech.records import Group, Prompt, Utterance
from speech.weights import Probe

if TYPE_CHECKING:
    from rollout.voices import VoiceMode

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A checkpoint folder, the family that reads it (None: by `model_type`), and the family's options."""

    path: str
    family: str | None
    options: Mapping[str, Any] = field(default_factory=dict)


class PromptPool(Protocol):
    """What makes prompts of utterances: of their sound in ASR, of text and voice in TTS."""

    actors: list[Any]

    def start(self) -> list[ray.ObjectRef]:
        """What to wait for until the models are loaded."""

    def encode(
        self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool = False
    ) -> list[EncodedRef]:
        """References to the prompts, in order.

        Args:
            for_learner: with what the learner needs, and not only what an engine does.

        Raises:
            InputError: naming every utterance that cannot be used, and why.
        """

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        """Replace the weights of the parts that the learner trains."""

    def encoded_total(self) -> int:
        """Recordings that went through a model since the start."""


class EncoderPool:
    """Encodes each utterance of a step once; the results stay in the object store, for engines and learner alike."""

    def __init__(self, model: ModelRef, config: EncoderConfig, learner_mode: EncoderMode, placement: Placement) -> None:
        """`learner_mode`: what the encoded audio must hold for the learner."""
        self._learner_mode = learner_mode
        self.actors: list[Any] = [
            EncoderActor.options(**encoder_options(config) | placement.encoder(i)).remote(  # type: ignore[attr-defined]
                model.path, model.family, config, model.options
            )
            for i in range(config.count)
        ]

    def start(self) -> list[ray.ObjectRef]:
        return [actor.ready.remote() for actor in self.actors]

    def encode(
        self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool = False
    ) -> list[EncodedRef]:
        mode = self._learner_mode if for_learner else "embeddings"
        shares = contiguous(utterances, len(self.actors))
        calls = [actor.encode.remote(list(s), mode) for actor, s in zip(self.actors, shares, strict=True) if s]
        return [reference for part in get(calls, "encode", timeout) for reference in part]

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        if states:
            shared = ray.put(states)
            get([actor.update.remote(shared) for actor in self.actors], "encoder update", timeout)

    def encoded_total(self) -> int:
        return sum(get([actor.encoded_total.remote() for actor in self.actors], "encoder count", 60.0))


class VoicePool:
    """What stands in an `EncoderPool`'s place for TTS: texts and prompt voices become prompts of a speech LM."""

    def __init__(
        self, model: ModelRef, codec: str, config: EncoderConfig, learner_mode: VoiceMode, placement: Placement
    ) -> None:
        """`learner_mode`: `target` also encodes each utterance's own recording, for SFT."""
        self._learner_mode = learner_mode
        self.actors: list[Any] = [
            VoiceActor.options(**encoder_options(config) | placement.encoder(i)).remote(  # type: ignore[attr-defined]
                model.path, model.family, codec, config, model.options
            )
            for i in range(config.count)
        ]

    def start(self) -> list[ray.ObjectRef]:
        return [actor.ready.remote() for actor in self.actors]

    def encode(
        self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool = False
    ) -> list[EncodedRef]:
        mode = self._learner_mode if for_learner else "prompt"
        shares = contiguous(utterances, len(self.actors))
        calls = [actor.encode.remote(list(s), mode) for actor, s in zip(self.actors, shares, strict=True) if s]
        return [reference for part in get(calls, "encode voices", timeout) for reference in part]

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        # Nothing that the learner trains stands before a speech LM.
        if states:
            raise ValueError(f"a model that speaks has no {', '.join(states)} to update")

    def encoded_total(self) -> int:
        return sum(get([actor.encoded_total.remote() for actor in self.actors], "voice count", 60.0))


class Generation:
    """Groups that are being sampled; see `EngineFleet.submit`."""

    def __init__(self, calls: Sequence[ray.ObjectRef]) -> None:
        self._calls = list(calls)

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return len(ray.wait(self._calls, num_returns=len(self._calls), timeout=0)[0]) == len(self._calls)

    def result(self, timeout: float | None) -> list[Group]:
        """Unscored groups, in the order of the prompts.

        Raises:
            TimeoutError: they are not there after `timeout` seconds; sampling goes on.
        """
        return [group for part in get(self._calls, "generate", timeout) for group in part]

    def cancel(self) -> None:
        """Stop sampling; `result` raises from now on, unless the groups are there already."""
        for call in self._calls:
            ray.cancel(call)


class EngineFleet:
    """A fixed number of engines, each an independent actor.

    `submit` and `publish` may be called from different threads at the same time: an engine decides which comes first.
    """

    def __init__(self, model: ModelRef, config: EngineConfig, placement: Placement, sleeps: bool = False) -> None:
        """`sleeps`: engines leave their GPUs between their turns (`sleep`)."""
        self.config = config
        self.actors = [
            EngineActor.options(**engine_options(config) | placement.engine(i)).remote(  # type: ignore[attr-defined]
                model.path, model.family, config, model.options, sleeps
            )
            for i in range(config.count)
        ]

    def start(self, version: int | None) -> list[ray.ObjectRef]:
        """What to wait for until the engines run.

        Args:
            version: of the checkpoint's own weights; None makes the engines wait for a verified publication.
        """
        return [actor.start.remote(version) for actor in self.actors]

    def submit(self, prompts: Sequence[Prompt], audio: Sequence[EncodedRef], sampling: SamplingConfig) -> Generation:
        """Begin to sample a group for every prompt. Which engine samples a prompt depends on the order alone."""
        shares = contiguous(list(zip(prompts, audio, strict=True)), len(self.actors))
        return Generation(
            [
                actor.generate.remote([p for p, _ in share], [a.ref for _, a in share], sampling)
                for actor, share in zip(self.actors, shares, strict=True)
                if share
            ]
        )

    def generate(
        self, prompts: Sequence[Prompt], audio: Sequence[EncodedRef], sampling: SamplingConfig, timeout: float | None
    ) -> list[Group]:
        """Unscored groups, in the order of the prompts."""
        return self.submit(prompts, audio, sampling).result(timeout)

    def publish(
        self,
        version: int,
        buckets: Sequence[ray.ObjectRef],
        probe: Probe,
        timeout: float | None,
        in_flight: bool = False,
    ) -> float:
        """Load and verify new weights on all engines; the largest |Δ log-prob| of their probes.

        Args:
            in_flight: running samples go on under the new weights; otherwise they end under the old ones first.
        """
        calls = [actor.update_weights.remote(version, list(buckets), probe, in_flight) for actor in self.actors]
        return max(get(calls, "publish", timeout))

    def sleep(self, timeout: float | None, keep_weights: bool = False) -> None:
        """Leave the GPUs, until the next publication, or with `keep_weights` until `wake`."""
        get([actor.sleep.remote(keep_weights) for actor in self.actors], "engine sleep", timeout)

    def wake(self, timeout: float | None) -> None:
        """Come back with the weights that were kept."""
        get([actor.wake.remote() for actor in self.actors], "engine wake-up", timeout)

    def stats(self) -> list[EngineStats]:
        """Totals of each engine since its start."""
        return get([actor.stats.remote() for actor in self.actors], "engine statistics", 60.0)

    def shutdown(self) -> None:
        get([actor.shutdown.remote() for actor in self.actors], "engine shutdown", 60.0)


def contiguous(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Cut a sequence into `parts` runs of near-equal length (some empty when there are too few items)."""
    bounds = [round(i * len(items) / parts) for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


def get(calls: Sequence[ray.ObjectRef], what: str, timeout: float | None) -> list[Any]:
    """`ray.get` whose errors are the actors' own, and whose time-out says what was waited for.

    Raises:
        UserError: as raised in the actor.
        TimeoutError: naming the call.
    """
    try:
        return ray.get(list(calls), timeout=timeout)
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError(f"{what}: no answer from {len(calls)} actors within {timeout:.0f} s") from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
