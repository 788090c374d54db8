"""Pools of the actors that make prompts of utterances, seen from the controller."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from cluster.remote import draining_nodes, get, last_line
from cluster.work import contiguous
from rollout.actors import EncodedRef, EncoderActor, Encoding, VoiceActor, encoder_options
from rollout.config import EncoderConfig
from rollout.encoder import EncoderMode
from speech.records import Utterance

if TYPE_CHECKING:
    from rollout.voices import VoiceMode

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Actors that a share of the utterances is given to before the run gives up."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A checkpoint folder, the family that reads it (None: by `model_type`), and the family's options."""

    path: str
    family: str | None
    options: Mapping[str, Any] = field(default_factory=dict)


class PromptPool(ABC):
    """What makes prompts of utterances: of their sound in ASR, of text and voice in TTS.

    An actor that dies, or that does not answer in time, is replaced, and its share of the utterances is encoded again
    by its successor. What was encoded before outlives it: the controller owns the references.
    """

    what: str

    def __init__(self, count: int, options: Callable[[int], dict[str, Any]]) -> None:
        """`options`: more of Ray's options for each actor, such as its bundle."""
        self._options = options
        self.replaced = 0
        self._states: ray.ObjectRef | None = None
        self._lost_total = 0
        self.actors = [self._spawn(i) for i in range(count)]
        self._ready = [actor.ready.remote() for actor in self.actors]
        self._totals = [0] * count

    @abstractmethod
    def _spawn(self, index: int) -> Any:
        """A new actor in this place."""

    @abstractmethod
    def _mode(self, for_learner: bool) -> str:
        """What the actor is asked for."""

    def start(self) -> list[ray.ObjectRef]:
        """What to wait for until the models are loaded."""
        return list(self._ready)

    def encode(
        self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool = False
    ) -> list[EncodedRef]:
        """References to the prompts, in order.

        Args:
            timeout: of one attempt, in seconds.
            for_learner: with what the learner needs, and not only what an engine does.

        Raises:
            InputError: naming every utterance that cannot be used, and why.
            RuntimeError: `ATTEMPTS` actors in a row died or did not answer.
        """
        self._leave_nodes_that_go()
        mode = self._mode(for_learner)
        shares = contiguous(utterances, len(self.actors))
        # All are at work before the first is waited for.
        calls = [Encoding.ask(actor, s, mode) if s else None for actor, s in zip(self.actors, shares, strict=True)]
        results: list[EncodedRef] = []
        for index, (call, share) in enumerate(zip(calls, shares, strict=True)):
            if call is not None:
                results += self._collect(index, call, share, mode, timeout)
        return results

    def _collect(
        self, index: int, call: Encoding, share: Sequence[Utterance], mode: str, timeout: float | None
    ) -> list[EncodedRef]:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                (summaries,) = get([call.summaries], self.what, timeout)
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                reason = last_line(error)
                if attempt == ATTEMPTS:
                    message = f"{self.what}: {ATTEMPTS} actors failed on utterances from {share[0].id!r}: {reason}"
                    raise RuntimeError(message) from error
                call = Encoding.ask(self._replace(index, reason), share, mode)
            else:
                return call.collect(summaries)
        raise AssertionError("unreachable")

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        """Replace the weights of the parts that the learner trains."""
        if not states:
            return
        self._states = ray.put(states)
        calls = [actor.update.remote(self._states) for actor in self.actors]
        for index, call in enumerate(calls):
            try:
                get([call], f"{self.what}: update", timeout)
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                self._replace(index, last_line(error))

    def encoded_total(self) -> int:
        """Recordings that went through a model since the start; those of a lost actor as far as they were known."""
        for index, actor in enumerate(self.actors):
            try:
                (self._totals[index],) = get([actor.encoded_total.remote()], f"{self.what}: count", 60.0)
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                self._replace(index, last_line(error))
        return self._lost_total + sum(self._totals)

    def _leave_nodes_that_go(self) -> None:
        """Between two calls nothing is lost with an actor, so one whose node was announced to go is replaced now."""
        going = draining_nodes()
        for index, ready in enumerate(self._ready if going else []):
            try:
                gone = ray.get(ready, timeout=0) in going
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                continue  # it still loads, or is dead, which its next call will say
            if gone:
                self._replace(index, "its node is about to go")

    def _replace(self, index: int, reason: str) -> Any:
        logger.warning("%s: replacing an actor: %s", self.what, reason)
        ray.kill(self.actors[index])
        self.replaced += 1
        self._lost_total += self._totals[index]
        self._totals[index] = 0
        actor = self.actors[index] = self._spawn(index)
        self._ready[index] = actor.ready.remote()
        if self._states is not None:
            actor.update.remote(self._states)  # in order before whatever it is asked next
        return actor


class EncoderPool(PromptPool):
    """Encodes each utterance of a step once; the results stay in the object store, for engines and learner alike."""

    what = "encode"

    def __init__(
        self,
        model: ModelRef,
        config: EncoderConfig,
        learner_mode: EncoderMode,
        options: Callable[[int], dict[str, Any]] = lambda index: {},
    ) -> None:
        """`learner_mode`: what the encoded audio must hold for the learner."""
        self._model, self._config, self._learner_mode = model, config, learner_mode
        super().__init__(config.count, options)

    def _spawn(self, index: int) -> Any:
        model, config = self._model, self._config
        return EncoderActor.options(**encoder_options(config) | self._options(index)).remote(  # type: ignore[attr-defined]
            model.path, model.family, config, model.options
        )

    def _mode(self, for_learner: bool) -> str:
        return self._learner_mode if for_learner else "embeddings"


class VoicePool(PromptPool):
    """What stands in an `EncoderPool`'s place for TTS: texts and prompt voices become prompts of a speech LM."""

    what = "encode voices"

    def __init__(
        self,
        model: ModelRef,
        codec: str,
        config: EncoderConfig,
        learner_mode: VoiceMode,
        options: Callable[[int], dict[str, Any]] = lambda index: {},
    ) -> None:
        """`learner_mode`: `target` also encodes each utterance's own recording, for SFT."""
        self._model, self._codec, self._config, self._learner_mode = model, codec, config, learner_mode
        super().__init__(config.count, options)

    def _spawn(self, index: int) -> Any:
        model, config = self._model, self._config
        return VoiceActor.options(**encoder_options(config) | self._options(index)).remote(  # type: ignore[attr-defined]
            model.path, model.family, self._codec, config, model.options
        )

    def _mode(self, for_learner: bool) -> str:
        return self._learner_mode if for_learner else "prompt"

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        # Nothing that the learner trains stands before a speech LM.
        if states:
            raise ValueError(f"a model that speaks has no {', '.join(states)} to update")
