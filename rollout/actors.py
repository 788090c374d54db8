"""Ray shells around the encoder and the engine. The controller passes references through them, never tensors.

This module imports neither vLLM nor a model: the controller needs the actor classes, not what runs in them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.config import EncoderConfig, EngineConfig, SamplingConfig
from rollout.errors import UnreadableError, WeightsLostError
from rollout.vllm_process.root_cause import causes_named
from speech.errors import UserError, last_line
from speech.records import BadUtterance, Group, Prompt, PromptLayout, Utterance
from speech.runtime.hub import model_folder
from speech.runtime.importing import ours_first
from speech.runtime.spans import Span, SpanRecorder

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import numpy as np

    from rollout.encoders.encoder import EncoderMode
    from rollout.encoders.voices import VoiceMode
    from rollout.engine.stats import EngineHealth, EngineStats
    from speech.runtime.device_weights import DeviceBucket
    from speech.runtime.shared_weights import Bucket, SharedBucket
    from speech.runtime.weights import Probe, WeightBucket


@dataclass(frozen=True, slots=True)
class EncodedRef:
    """An `EncodedAudio` in the object store, with what the controller wants to know of it.

    Attributes:
        ref: reference to the `EncodedAudio`.
        seconds: length of the audio.
        layout: of the prompt.
        target_ids: ids of the reference response, stop token included, where it is speech (TTS, `sft`).
    """

    ref: ObjectRef
    seconds: float
    layout: PromptLayout
    target_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedSummary:
    """All of an `EncodedAudio` that the controller wants to know: the fields of `EncodedRef` without the reference."""

    seconds: float
    layout: PromptLayout
    target_ids: tuple[int, ...] = ()


Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Encoded(Generic[Value]):
    """What an actor answers of utterances.

    Attributes:
        values: one per utterance, in order.
        recordings: that went through the actor's model for it; those that it remembers do not again.
    """

    values: list[Value]
    recordings: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """A call under way of `EncoderActor.encode` or `VoiceActor.encode`.

    Attributes:
        summaries: reference to the `Encoded` with one `EncodedSummary` per utterance.
        items: references to the `EncodedAudio`. They are the call's return values and not puts of the actor, so the
            caller owns them and they outlive the actor.
    """

    summaries: ObjectRef
    items: tuple[ObjectRef, ...]

    @classmethod
    def ask(cls, actor: Any, utterances: Sequence[Utterance], mode: str) -> Encoding:
        """Begin to encode."""
        call = actor.encode.options(num_returns=len(utterances) + 1)
        summaries, *items = call.remote(list(utterances), mode)
        return cls(summaries, tuple(items))

    def collect(self, summaries: Encoded[EncodedSummary | BadUtterance]) -> list[EncodedRef | BadUtterance]:
        """The references, with what `self.summaries` turned out to be."""
        return [
            summary
            if isinstance(summary, BadUtterance)
            else EncodedRef(ref=item, seconds=summary.seconds, layout=summary.layout, target_ids=summary.target_ids)
            for item, summary in zip(self.items, summaries.values, strict=True)
        ]


@ray.remote
class EncoderActor:
    """`UtteranceEncoder` in a process of its own."""

    def __init__(
        self, model: str, family: str | None, config: EncoderConfig, options: Mapping[str, Any] | None = None
    ) -> None:
        import torch

        from rollout.encoders.encoder import UtteranceEncoder
        from speech.audio import load_audio
        from speech.families import ModelFamily, load_family

        torch.set_num_threads(config.threads)
        loaded = load_family(model_folder(model), family, options)
        if not isinstance(loaded, ModelFamily):
            raise UserError(f"model family {loaded.name!r} has no audio encoder: it speaks")
        self._encoder = UtteranceEncoder(
            loaded,
            config,
            load_audio,
            device="cuda" if config.gpus else "cpu",
        )

    def ready(self) -> str:
        """Returns once the models are loaded: the hex id of the node."""
        return _node()

    def encode(self, utterances: Sequence[Utterance], mode: EncoderMode = "embeddings") -> list[Any]:
        """Read and encode; to be called through `Encoding.ask`.

        Returns:
            The `Encoded` with an `EncodedSummary` or a `BadUtterance` for each utterance, and after it the
            `EncodedAudio` of each; None for a bad one.

        Raises:
            Exception: all of several fail, and not because of their data.
        """
        before = self._encoder.encoded_total
        encoded = self._encoder.encode(self._encoder.load(utterances), utterances, mode)
        summaries = [
            item if isinstance(item, BadUtterance) else EncodedSummary(item.seconds, item.layout) for item in encoded
        ]
        items = [None if isinstance(item, BadUtterance) else item for item in encoded]
        return [Encoded(summaries, self._encoder.encoded_total - before), *items]

    def update(self, weights: Mapping[str, WeightBucket]) -> None:
        self._encoder.update(weights)


@ray.remote
class VoiceActor:
    """`VoiceEncoder` in a process of its own: what stands in the place of an `EncoderActor` for TTS."""

    def __init__(
        self,
        model: str,
        family: str | None,
        codec: str,
        config: EncoderConfig,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`codec` is the codec's folder; which codec it is the family says."""
        import torch

        from rollout.encoders.voices import VoiceEncoder
        from speech.audio import load_audio
        from speech.codecs import load_codec
        from speech.families import SpeechFamily, load_family

        torch.set_num_threads(config.threads)
        loaded = load_family(model_folder(model), family, options)
        if not isinstance(loaded, SpeechFamily):
            raise UserError(f"model family {loaded.name!r} does not speak")
        self._voices = VoiceEncoder(loaded, load_codec(codec, loaded.codec), config, load_audio)

    def ready(self) -> str:
        """Returns once the codec is loaded: the hex id of the node."""
        return _node()

    def encode(self, utterances: Sequence[Utterance], mode: VoiceMode = "prompt") -> list[Any]:
        """As `EncoderActor.encode`."""
        before = self._voices.encoded_total
        items = self._voices.encode(utterances, mode)
        summaries = [
            item
            if isinstance(item, BadUtterance)
            else EncodedSummary(item.encoded.seconds, item.encoded.layout, item.target_ids)
            for item in items
        ]
        encoded = [None if isinstance(item, BadUtterance) else item.encoded for item in items]
        return [Encoded(summaries, self._voices.encoded_total - before), *encoded]


@ray.remote
class CodecActor:
    """`RecordingEncoder` in a process of its own: a codec without a model that speaks its tokens."""

    def __init__(self, codec: str, config: EncoderConfig) -> None:
        """`codec` is the codec's folder."""
        import torch

        from rollout.encoders.recordings import RecordingEncoder
        from speech.audio import load_audio
        from speech.codecs import load_codec

        torch.set_num_threads(config.threads)
        self._recordings = RecordingEncoder(load_codec(codec), config, load_audio)

    def ready(self) -> str:
        """Returns once the codec is loaded: the hex id of the node."""
        return _node()

    def size(self) -> int:
        """Number of the codec's tokens."""
        return self._recordings.codec.size

    def features(self) -> np.ndarray | None:
        """See `Codec.features`."""
        return self._recordings.codec.features()

    def tokenise(self, utterances: Sequence[Utterance]) -> Encoded[tuple[int, ...] | BadUtterance]:
        """See `RecordingEncoder.tokenise`."""
        before = self._recordings.encoded_total
        tokens = self._recordings.tokenise(utterances)
        return Encoded(tokens, self._recordings.encoded_total - before)


@ray.remote
class EngineActor:
    """`RolloutEngine` in a process of its own; its methods are coroutines, so that one call does not block another."""

    def __init__(
        self,
        model: str,
        family: str | None,
        config: EngineConfig,
        options: Mapping[str, Any] | None = None,
        sleeps: bool = False,
    ) -> None:
        from rollout.engine.engine import RolloutEngine
        from speech.families import load_family

        ours_first()  # for vLLM's processes, which import our plug-in
        logging.getLogger("vllm").setLevel(logging.WARNING)
        self._engine = RolloutEngine(load_family(model_folder(model), family, options), config, sleeps)
        self._spans = SpanRecorder()
        self._opens = True
        """Whether its workers may be able to read the learner's device."""

    async def start(self, version: int | None = 0) -> str:
        """As `RolloutEngine.start`; returns the hex id of the node that it runs on.

        Raises:
            UserError, EngineLostError: with the cause that vLLM's own error leaves out.
        """
        with causes_named():
            await self._engine.start(version)
        return _node()

    async def generate(
        self, prompts: Sequence[Prompt], audio: Sequence[ObjectRef], sampling: SamplingConfig
    ) -> AsyncIterator[tuple[int, Group]]:
        """As `RolloutEngine.stream`, with references to `EncodedAudio` in the place of the values; to be called with
        `num_returns="streaming"`."""
        encoded = await asyncio.gather(*audio)
        with self._spans.span("generate"):
            # Closed at once when the call is cancelled: the engine gives up what it still samples.
            async with aclosing(self._engine.stream(prompts, encoded, sampling)) as stream:
                async for placed in stream:
                    yield placed

    async def update_weights(
        self, version: int, buckets: Sequence[ObjectRef], probe: Probe, in_flight: bool = False
    ) -> float:
        """As `RolloutEngine.update_weights`; fetches one bucket at a time, in the thread that stages them.

        An engine that cannot read the learner's device gets the weights through the host, then and from then on.
        """
        with self._spans.span("update"):
            try:
                fetched = (_fetched(bucket, self._opens) for bucket in buckets)
                return await self._engine.update_weights(version, fetched, probe, in_flight=in_flight)
            except UnreadableError as error:
                logger.warning("weights come through the host from now on: %s", error)
                self._opens = False
            fetched = (_fetched(bucket, self._opens) for bucket in buckets)
            return await self._engine.update_weights(version, fetched, probe, in_flight=in_flight)

    async def sleep(self, keep_weights: bool = False) -> None:
        with self._spans.span("sleep"):
            await self._engine.sleep(keep_weights)

    async def wake(self) -> None:
        with self._spans.span("wake"):
            await self._engine.wake()

    async def probe(self, token_ids: Sequence[int]) -> list[float]:
        return await self._engine.probe(token_ids)

    async def health(self) -> EngineHealth:
        return await self._engine.health()

    async def stats(self) -> EngineStats:
        return self._engine.stats()

    async def spans(self) -> list[Span]:
        """What it did since the last call."""
        return self._spans.take()

    async def shutdown(self) -> None:
        self._engine.shutdown()


def _fetched(bucket: ObjectRef, opens: bool) -> Bucket:
    """`opens`: weights on the device of a learner of this node may stay there."""
    from speech.runtime.device_weights import DeviceBucket
    from speech.runtime.shared_weights import SharedBucket

    try:
        weights: Bucket = ray.get(bucket)
        on_device = isinstance(weights, DeviceBucket)
        if isinstance(weights, (SharedBucket, DeviceBucket)) and (weights.node != _node() or (on_device and not opens)):
            # An engine that came to another node after the publication.
            place = NodeAffinitySchedulingStrategy(weights.node, soft=False)
            read = _read_device if on_device else _read
            weights = ray.get(read.options(scheduling_strategy=place).remote(weights))
    except (ray.exceptions.ObjectLostError, ray.exceptions.TaskUnschedulableError, FileNotFoundError) as error:
        raise WeightsLostError(f"weights were on a node that is gone: {last_line(error)}") from error
    return weights


@ray.remote(num_cpus=0, max_retries=0)
def _read(bucket: SharedBucket) -> WeightBucket:
    return bucket.read()


@ray.remote(num_cpus=0, max_retries=0, max_calls=1)
def _read_device(bucket: DeviceBucket) -> WeightBucket:
    """In a process that is new, as it must choose its GPU, and that ends after it, as it would keep memory there."""
    return bucket.read()


def _node() -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node
