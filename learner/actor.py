"""Thin Ray shell around a learner rank, and the gang that the loop talks to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import ray
import torch

from learner.batches.plan import RankShare, audio_of
from learner.components.transport import Receivers, Transport
from learner.rank import LearnerRank
from learner.spec import StepResult
from learner.token2text.plan import Prediction, SpeechText, Token2TextShare
from learner.token2text.rank import Token2TextRank
from speech.records import EncodedAudio
from speech.runtime.shared_weights import Bucket
from speech.runtime.spans import Span, SpanRecorder
from speech.runtime.weights import WeightBucket


class _Shell:
    """What the actors of both kinds of rank share."""

    def __init__(self, spec: Any, rank: int, world_size: int) -> None:
        self.spec, self.rank_index, self.world_size = spec, rank, world_size
        self.rank: Any = None
        self.recorder = SpanRecorder()

    def spans(self) -> list[Span]:
        """What it did since the last call."""
        return self.recorder.take()

    def address(self) -> str:
        """`host:port` that is free on this node, for rank 0 to host the rendezvous."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def node(self) -> str:
        """Hex id of the node that it runs on."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def save_in_background(self, folder: str, copy: bool) -> None:
        with self.recorder.span("save"):
            self._rank.save(folder, background=True, copy=copy)

    def saved(self) -> bool:
        return bool(self._rank.saved())

    def load(self, folder: str) -> None:
        self._rank.load(folder)

    @property
    def _rank(self) -> Any:
        if self.rank is None:
            raise RuntimeError(f"learner rank {self.rank_index} was not started")
        return self.rank


def _fetched(shares: list[RankShare], audio: dict[int, ray.ObjectRef]) -> dict[int, EncodedAudio]:
    wanted = audio_of(shares)
    return dict(zip(wanted, ray.get([audio[i] for i in wanted]), strict=True))


@ray.remote
class LearnerActor(_Shell):
    """One rank. Methods mirror `LearnerRank`; object references are resolved here, never on the controller."""

    def start(self, address: str) -> None:
        self.rank = LearnerRank(self.spec, self.rank_index, self.world_size, f"tcp://{address}")

    def update(self, step: int, shares: list[RankShare], audio: dict[int, ray.ObjectRef]) -> StepResult:
        encoded = _fetched(shares, audio)
        with self.recorder.span("update"):
            return self._rank.update(step, shares, encoded)

    def accumulate(self, step: int, share: RankShare, audio: dict[int, ray.ObjectRef], first: bool) -> None:
        encoded = _fetched([share], audio)
        with self.recorder.span("update"):
            self._rank.accumulate(step, share, encoded, first)

    def finish(self, step: int, divisor: int, replay: list[RankShare], audio: dict[int, ray.ObjectRef]) -> StepResult:
        encoded = _fetched(replay, audio)
        with self.recorder.span("update"):
            return self._rank.finish(step, divisor, replay, encoded)

    def publish(self, dtype: str, bucket_bytes: int, receivers: Receivers) -> Iterator[Bucket]:
        """The weights bucket by bucket, from rank 0; to be called with `num_returns="streaming"`."""
        with self.recorder.span("publish"):
            yield from self._rank.weight_buckets(getattr(torch, dtype), bucket_bytes, receivers, self.node())

    def transport(self) -> tuple[Transport, str] | None:
        """Of the last publication, and why; rank 0 chose it."""
        chosen: tuple[Transport, str] | None = self._rank.outlet.chosen
        return chosen

    def frontend_weights(self) -> dict[str, WeightBucket]:
        with self.recorder.span("publish"):
            return self._rank.frontend_weights()

    def adapter(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        with self.recorder.span("publish"):
            return self._rank.adapter()

    def set_onloaded(self, onloaded: bool) -> None:
        """Come onto the device, or leave it; nothing happens on CPU."""
        with self.recorder.span("onload" if onloaded else "offload"):
            self._rank.offloader.onload() if onloaded else self._rank.offloader.offload()

    def probe_logprobs(self, sequences: list[tuple[int, ...]], published: str, compute: str) -> list[float]:
        with self.recorder.span("probe"):
            return self._rank.probe_logprobs(sequences, getattr(torch, published), getattr(torch, compute))


@ray.remote
class Token2TextActor(_Shell):
    """One rank of the reward model's training."""

    def start(self, address: str) -> None:
        self.rank = Token2TextRank(self.spec, self.rank_index, self.world_size, f"tcp://{address}")

    def update(self, step: int, share: Token2TextShare) -> dict[str, float]:
        return self._rank.update(step, share)

    def predict(self, items: list[SpeechText], dummy: SpeechText) -> list[Prediction]:
        return self._rank.predict(items, dummy)
