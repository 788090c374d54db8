"""The learner group: its ranks as actors, seen from the controller."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import ray
import torch

from learner.actor import LearnerActor, Token2TextActor
from learner.batches.batch import TrainGroup
from learner.batches.packing import totals
from learner.batches.plan import RankShare, audio_of, plan_updates
from learner.batches.rounds import Rounds
from learner.components.transport import NOBODY, Receivers, Transport
from learner.losses.diffro import frames_per_token
from learner.losses.sums import ONE, divisor, is_one_sum
from learner.memory import out_of_memory
from learner.spec import RankSpec, StepResult, uses_diffro
from learner.token2text.plan import Prediction, SpeechText, plan_predictions, plan_token2text
from learner.token2text.rank import Token2TextSpec
from speech.errors import UserError, last_line
from speech.runtime.weights import WeightBucket

logger = logging.getLogger(__name__)

Audio = Mapping[int, ray.ObjectRef]
"""Encoded audio by index."""

GRACE_S = 10.0
"""When a rank raises, its peers may be gone: how long to wait for that to show."""


class LearnerLostError(Exception):
    """A rank died or did not answer. The others cannot go on without it: only a new gang helps."""


class LearnerOutOfMemoryError(LearnerLostError):
    """A rank was ended because its node had no memory left. The next gang needs as much."""


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
        self.node: str | None = None
        """Hex id of the node of rank 0, once it has a place."""
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
        (self.node,) = self._get([self.actors[0].node.remote()], "start", timeout)
        return [actor.start.remote(address) for actor in self.actors]

    def save_in_background(self, folder: str, copy: bool) -> None:
        """Begin to write the state of every rank; `saved` says when it is written.

        Args:
            copy: write a copy, so that training may go on. Without one, call nothing that changes the state before
                `saved`.
        """
        self._all("save_in_background", folder, copy)

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
            LearnerOutOfMemoryError: Ray ended it, with what its node's memory is used for.
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
            except ray.exceptions.OutOfMemoryError as error:
                rank = calls.index(ready[0])
                message = f"learner {what}: rank {rank} is lost: {out_of_memory(str(error))}"
                raise LearnerOutOfMemoryError(message) from None
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
    _transport: tuple[Transport, str] | None = None

    @cached_property
    def _frames_per_token(self) -> int:
        return frames_per_token(self.spec)

    @cached_property
    def _is_one_sum(self) -> bool:
        return is_one_sum(self.spec)

    def begin(self, step: int, hold: bool = False) -> StepUpdate:
        """A step's updates, whose groups are still to come; `hold` keeps the ranks idle until all have come."""
        return StepUpdate(self, step, hold)

    def publish(self, dtype: str, bucket_bytes: int, receivers: Receivers = NOBODY) -> list[ray.ObjectRef]:
        """References to the buckets. The caller owns them: those of the object store can be fetched when the rank is
        gone.

        Args:
            receivers: the engines, after whom the transport is chosen.
        """
        streams = [
            actor.publish.options(num_returns="streaming").remote(dtype, bucket_bytes, receivers)
            for actor in self.actors
        ]
        self._get([stream.completed() for stream in streams], "publish")
        (chosen,) = self._get([self.actors[0].transport.remote()], "publish")
        if chosen != self._transport:
            logger.info("weights go through %s: %s", *chosen)
            self._transport = chosen
        return list(streams[0])

    def frontend_weights(self) -> dict[str, WeightBucket]:
        return self._all("frontend_weights")[0]

    def adapter(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The language model's adapter under peft's names, and its configuration; see `LearnerRank.adapter`."""
        return self._all("adapter")[0]

    def set_onloaded(self, onloaded: bool) -> None:
        """Come onto the devices that others use too, or leave them."""
        self._all("set_onloaded", onloaded)

    def probe_logprobs(self, sequences: list[tuple[int, ...]], published: str, compute: str) -> list[float]:
        return self._all("probe_logprobs", sequences, published, compute)[0]


class StepUpdate:
    """A step's optimiser updates, whose groups come one after the other, in the order of their prompts.

    Where the gradient is one sum (`is_one_sum`), the ranks learn from each round of micro-batches as soon as it is
    full, while the rest of the step is still sampled. The rounds, and so the result to the last bit, do not depend on
    when groups come. A step that fills no more than one round is learned from as a whole, and so is every step of the
    other objectives.
    """

    def __init__(self, gang: LearnerGroup, step: int, hold: bool) -> None:
        config = gang.spec.config
        self._gang, self._step, self._hold = gang, step, hold
        self._rounds = Rounds(config.ranks, config.micro_batch_tokens)
        self._full: list[list[TrainGroup]] = []
        self._groups: list[TrainGroup] = []
        self._begun: list[list[ray.ObjectRef]] = []

    def add(self, groups: Sequence[TrainGroup], audio: Audio) -> None:
        """More groups; does not wait for the ranks.

        Args:
            audio: at least that of all groups so far, by index.
        """
        self._groups += groups
        if self._gang._is_one_sum:
            self._full += self._rounds.add(groups)
            if not self._hold:
                self._learn(audio)

    def finish(self, replay: Sequence[TrainGroup], audio: Audio) -> StepResult:
        """Learn from the rest and update; the result is already reduced over the ranks.

        A step whose every group was rejected changes nothing and reports nothing.
        """
        gang, config = self._gang, self._gang.spec.config
        if not self._begun and not self._full:
            sample_filter = config.diffro.filter if uses_diffro(gang.spec) else None
            updates, frames = config.updates_per_step, gang._frames_per_token
            shares = plan_updates(self._groups, replay, updates, config.ranks, sample_filter, frames)
            if not shares[0]:
                return StepResult({}, {})
            calls = [
                actor.update.remote(self._step, share, _of(share, audio))
                for actor, share in zip(gang.actors, shares, strict=True)
            ]
            return gang._get(calls, "update")[0]
        self._full.append(self._rounds.open)
        self._learn(audio)
        for calls in self._begun:
            gang._get(calls, "update")  # a rank that misses a part of the gradient must not update
        whole = divisor(totals(self._groups), config.loss)
        calls = [
            actor.finish.remote(self._step, whole, share, _of(share, audio))
            for actor, share in zip(gang.actors, plan_updates([], replay, 1, config.ranks), strict=True)
        ]
        return gang._get(calls, "update")[0]

    def _learn(self, audio: Audio) -> None:
        """Give the ranks the rounds that are full."""
        ranks = self._gang.spec.config.ranks
        while self._full:
            first, plan = not self._begun, plan_updates(self._full.pop(0), [], 1, ranks)
            self._begun.append(
                [
                    actor.accumulate.remote(self._step, replace(share, totals=ONE), _of([share], audio), first)
                    for actor, [share] in zip(self._gang.actors, plan, strict=True)
                ]
            )


def _of(shares: Sequence[RankShare], audio: Audio) -> dict[int, ray.ObjectRef]:
    return {index: audio[index] for index in audio_of(shares)}


class Token2TextGroup(_ActorGang):
    """The ranks of the reward model's training."""

    actor = Token2TextActor
    spec: Token2TextSpec

    @cached_property
    def _frames_per_token(self) -> int:
        return self.spec.shape().labels_per_token

    def update(self, step: int, items: Sequence[SpeechText]) -> dict[str, float]:
        """One optimiser update on all ranks; its metrics are already reduced over them."""
        spec = self.spec
        training = spec.training
        shares = plan_token2text(
            items, spec.config.ranks, training.mixup, spec.seed, step, training.noise, self._frames_per_token
        )
        calls = [actor.update.remote(step, share) for actor, share in zip(self.actors, shares, strict=True)]
        return self._get(calls, "update")[0]

    def predict(self, items: Sequence[SpeechText]) -> list[Prediction]:
        """Judge utterances without learning from them; one prediction each, in order."""
        plan = plan_predictions(items, self.spec.config.ranks)
        dummy = min(items, key=lambda item: len(item.tokens))
        calls = [
            actor.predict.remote([items[i] for i in share], dummy)
            for actor, share in zip(self.actors, plan, strict=True)
        ]
        predictions: dict[int, Prediction] = {}
        for share, part in zip(plan, self._get(calls, "predict"), strict=True):
            predictions.update(zip(share, part, strict=True))
        return [predictions[i] for i in range(len(items))]
