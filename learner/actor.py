"""Thin Ray shell around a learner rank, and the gang that the loop talks to."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch

from learner.batch import TrainGroup
from learner.diffro import uses_diffro
from learner.plan import RankShare, audio_of, plan_updates
from learner.rank import LearnerRank, RankSpec, StepResult
from learner.token2text_plan import Reading, SpeechText, Token2TextShare, plan_reading, plan_token2text
from learner.token2text_rank import Token2TextRank, Token2TextSpec
from speech.errors import UserError, last_line
from speech.spans import Span, SpanRecorder
from speech.weights import WeightBucket

GRACE_S = 10.0
"""When a rank raises, its peers may be gone: how long to wait for that to show."""


class LearnerLostError(Exception):
    """A rank died or did not answer. The others cannot go on without it: only a new gang helps."""


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

    def save_in_background(self, folder: str) -> None:
        with self.recorder.span("save"):
            self._rank.save(folder, background=True)

    def saved(self) -> bool:
        return bool(self._rank.saved())

    def load(self, folder: str) -> None:
        self._rank.load(folder)

    @property
    def _rank(self) -> Any:
        if self.rank is None:
            raise RuntimeError(f"learner rank {self.rank_index} was not started")
        return self.rank


@ray.remote
class LearnerActor(_Shell):
    """One rank. Methods mirror `LearnerRank`; object references are resolved here, never on the controller."""

    def start(self, address: str) -> None:
        self.rank = LearnerRank(self.spec, self.rank_index, self.world_size, f"tcp://{address}")

    def update(self, step: int, shares: list[RankShare], audio: dict[int, ray.ObjectRef]) -> StepResult:
        wanted = audio_of(shares)
        encoded = dict(zip(wanted, ray.get([audio[i] for i in wanted]), strict=True))
        with self.recorder.span("update"):
            return self._rank.update(step, shares, encoded)

    def publish(self, dtype: str, bucket_bytes: int) -> Iterator[WeightBucket]:
        """The weights bucket by bucket, from rank 0; to be called with `num_returns="streaming"`."""
        with self.recorder.span("publish"):
            yield from self._rank.weight_buckets(getattr(torch, dtype), bucket_bytes)

    def front_states(self) -> dict[str, dict[str, torch.Tensor]]:
        with self.recorder.span("publish"):
            return self._rank.front_states()

    def turn(self, present: bool) -> None:
        """Come onto the device, or leave it; nothing happens on CPU."""
        with self.recorder.span("enter" if present else "leave"):
            self._rank.resident.enter() if present else self._rank.resident.leave()

    def probe_logprobs(self, token_ids: list[int]) -> list[float]:
        with self.recorder.span("probe"):
            return self._rank.probe_logprobs(token_ids)


@ray.remote
class Token2TextActor(_Shell):
    """One rank of the reward model's training."""

    def start(self, address: str) -> None:
        self.rank = Token2TextRank(self.spec, self.rank_index, self.world_size, f"tcp://{address}")

    def update(self, step: int, share: Token2TextShare) -> dict[str, float]:
        return self._rank.update(step, share)

    def read(self, items: list[SpeechText], spare: SpeechText) -> list[Reading]:
        return self._rank.read(items, spare)


class _ActorGang:
    """Ranks as actors, seen from the controller. Every call reaches all of them, as their collectives demand."""

    actor: Any
    """The remote class of a rank."""

    def __init__(
        self, spec: Any, environment: dict[str, str], options: Callable[[int], dict[str, Any]] = lambda rank: {}
    ) -> None:
        """Create the actors; `start` is separate so that engines can load at the same time.

        Args:
            environment: environment variables of each rank (thread counts).
            options: more of Ray's options for each rank, such as its place.
        """
        config = spec.config
        self.spec = spec
        self.actors = [
            self.actor.options(
                **{
                    "num_cpus": 0 if config.gpus_per_rank else 1,
                    "num_gpus": config.gpus_per_rank,
                    "runtime_env": {"env_vars": environment},
                }
                | options(rank)
            ).remote(spec, rank, config.ranks)
            for rank in range(config.ranks)
        ]

    def start(self, timeout: float) -> list[ray.ObjectRef]:
        """Begin the rendezvous and the loading; returns what to wait for.

        Raises:
            LearnerLostError: rank 0 found no place in the cluster in time, or died.
        """
        (address,) = self._get([self.actors[0].address.remote()], "start", timeout)
        return [actor.start.remote(address) for actor in self.actors]

    def save_in_background(self, folder: str) -> None:
        """Copy the state on every rank and begin to write it; `saved` says when it is written."""
        self._all("save_in_background", folder)

    def saved(self) -> bool:
        """Whether all ranks have written their part of the last checkpoint; does not wait for them.

        Raises:
            UserError: the disk refused.
        """
        return all(self._all("saved"))

    def load(self, folder: str) -> None:
        self._all("load", folder)

    def close(self) -> None:
        """Kill the ranks, those that hang too."""
        for actor in self.actors:
            ray.kill(actor)

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._get([getattr(actor, method).remote(*args) for actor in self.actors], method)

    def _get(self, calls: list[ray.ObjectRef], what: str, timeout: float | None = None) -> list[Any]:
        """The answers of all ranks.

        Raises:
            LearnerLostError: a rank died, or the time is up.
            Exception: what a rank raised, when all of them live.
        """
        limit = timeout or self.spec.config.step_timeout_s
        deadline = time.monotonic() + limit
        waiting, raised = list(calls), None
        answers: dict[ray.ObjectRef, Any] = {}
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready and raised is None:
                ranks = ", ".join(str(calls.index(call)) for call in waiting)
                raise LearnerLostError(f"learner {what}: no answer from rank {ranks} within {limit:.0f} s")
            if not ready:
                break
            try:
                answers[ready[0]] = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ray.exceptions.ObjectLostError):
                    raise LearnerLostError(f"learner {what}: its input was on a node that is gone") from error
                # A collective that fails for want of a peer raises here too, and often before Ray knows of the death.
                raised = raised or error
                deadline = min(deadline, time.monotonic() + GRACE_S)
            except ray.exceptions.RayError as error:
                rank = calls.index(ready[0])
                raise LearnerLostError(f"learner {what}: rank {rank} is lost: {last_line(error)}") from error
        if raised is None:
            return [answers[call] for call in calls]
        self._find_the_dead(what, raised)
        if isinstance(raised.cause, UserError):
            raise raised.cause from None
        raise raised

    def _find_the_dead(self, what: str, raised: BaseException) -> None:
        """Raises LearnerLostError when a rank does not even say its address, for which it needs no peer."""
        for rank, actor in enumerate(self.actors):
            try:
                ray.get(actor.address.remote(), timeout=GRACE_S)
            except ray.exceptions.RayActorError as error:
                raise LearnerLostError(f"learner {what}: rank {rank} is lost, and its peers failed") from error
            except ray.exceptions.GetTimeoutError:
                continue  # it waits for a peer, or computes


class LearnerGroup(_ActorGang):
    """The ranks of the policy."""

    actor = LearnerActor
    spec: RankSpec

    def update(
        self,
        step: int,
        groups: Sequence[TrainGroup],
        replay: Sequence[TrainGroup],
        audio: dict[int, ray.ObjectRef],
    ) -> StepResult:
        """One step's optimiser updates on all ranks; the result is already reduced over them.

        A step whose every group was rejected changes nothing and reports nothing.
        """
        config = self.spec.config
        sample_filter = config.diffro.filter if uses_diffro(self.spec) else None
        shares = plan_updates(groups, replay, config.updates_per_step, config.ranks, sample_filter)
        if not shares[0]:
            return StepResult({}, {})
        calls = [
            actor.update.remote(step, share, {i: audio[i] for i in audio_of(share)})
            for actor, share in zip(self.actors, shares, strict=True)
        ]
        return self._get(calls, "update")[0]

    def publish(self, dtype: str, bucket_bytes: int) -> list[ray.ObjectRef]:
        """References to the buckets. The caller owns them, so that engines can fetch them when the rank is gone."""
        streams = [actor.publish.options(num_returns="streaming").remote(dtype, bucket_bytes) for actor in self.actors]
        self._get([stream.completed() for stream in streams], "publish")
        return list(streams[0])

    def front_states(self) -> dict[str, dict[str, torch.Tensor]]:
        return self._all("front_states")[0]

    def turn(self, present: bool) -> None:
        """Come onto the devices that others use too, or leave them."""
        self._all("turn", present)

    def probe_logprobs(self, token_ids: list[int]) -> list[float]:
        return self._all("probe_logprobs", token_ids)[0]


class Token2TextGroup(_ActorGang):
    """The ranks of the reward model's training."""

    actor = Token2TextActor
    spec: Token2TextSpec

    def update(self, step: int, items: Sequence[SpeechText]) -> dict[str, float]:
        """One optimiser update on all ranks; its metrics are already reduced over them."""
        spec = self.spec
        training = spec.training
        shares = plan_token2text(items, spec.config.ranks, training.mixup, spec.seed, step, training.noise)
        calls = [actor.update.remote(step, share) for actor, share in zip(self.actors, shares, strict=True)]
        return self._get(calls, "update")[0]

    def read(self, items: Sequence[SpeechText]) -> list[Reading]:
        """Judge utterances without learning from them; one reading each, in order."""
        plan = plan_reading(items, self.spec.config.ranks)
        spare = min(items, key=lambda item: len(item.tokens))
        calls = [
            actor.read.remote([items[i] for i in share], spare) for actor, share in zip(self.actors, plan, strict=True)
        ]
        readings: dict[int, Reading] = {}
        for share, part in zip(plan, self._get(calls, "read"), strict=True):
            readings.update(zip(share, part, strict=True))
        return [readings[i] for i in range(len(items))]
