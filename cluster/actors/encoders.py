"""Pools of the actors that make prompts of utterances, seen from the controller."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from cluster.actors.encoder_members import EncoderRoster, EncoderWorker
from cluster.actors.model import ModelRef
from cluster.actors.remote import contiguous, draining_nodes, get
from rollout.actors import EncodedRef, EncoderActor, Encoding, VoiceActor
from rollout.config import EncoderConfig
from rollout.encoders.encoder import EncoderMode
from rollout.environment import encoder_options
from speech.errors import last_line
from speech.records import Utterance

if TYPE_CHECKING:
    from rollout.encoders.voices import VoiceMode

ATTEMPTS = 3
"""Actors that a share of the utterances is given to before the run gives up."""
COUNT_TIMEOUT_S = 60.0


class EncoderPool(ABC):
    """What makes prompts of utterances: of their sound in ASR, of text and voice in TTS.

    An actor that dies, or that does not answer in time, is replaced, and its share of the utterances is encoded again
    by another. What was encoded before outlives it: the controller owns the references.

    There are `encoder.count` actors until `resize` says otherwise. A new one gets work once it has loaded its models,
    as long as others can do it; one that must go finishes what it has. Safe for threads.
    """

    what: str

    def __init__(self, count: int, options: Callable[[int], dict[str, Any]]) -> None:
        """`options`: more of Ray's options for each actor, such as its bundle."""
        self._options = options
        self._states: ray.ObjectRef | None = None
        self._lock = threading.RLock()  # guards the members; nobody waits inside for what an actor encodes
        self._members = EncoderRoster(self.what, count, self._spawn)
        self._members.adjust()

    @abstractmethod
    def _spawn(self, place: int) -> Any:
        """A new actor in this place."""

    @abstractmethod
    def _mode(self, for_learner: bool) -> str:
        """What the actor is asked for."""

    def start(self) -> list[ray.ObjectRef]:
        """What to wait for until the models are loaded."""
        with self._lock:
            return [member.ready for member in self._members]

    @property
    def wanted(self) -> int:
        """How many actors there should be."""
        return self._members.wanted

    @property
    def replaced(self) -> int:
        """Actors that were replaced so far, those included that left a node before it went."""
        return self._members.replaced

    @property
    def actors(self) -> list[Any]:
        """Handles of the actors, of those included that still load."""
        with self._lock:
            return [member.actor for member in self._members]

    def loaded(self) -> dict[int, Any]:
        """Handles of the actors that have loaded their models, by place."""
        with self._lock:
            self._members.adjust()
            return {member.place: member.actor for member in self._members if member.node is not None}

    def serving(self) -> int:
        """How many actors have loaded their models and stay."""
        with self._lock:
            self._members.adjust()
            return sum(member.serves for member in self._members)

    def resize(self, wanted: int) -> None:
        """Let actors start, or go once they have finished what they have. Waits for neither."""
        with self._lock:
            self._members.wanted = wanted
            self._members.adjust()

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
        mode = self._mode(for_learner)
        with self._lock:
            self._members.adjust()
            self._members.leave_nodes(draining_nodes())
            self._members.adjust()
            members = self._members.candidates()
            shares = contiguous(utterances, len(members))
            # All are at work before the first is waited for.
            calls = [(m, self._ask(m, s, mode), s) for m, s in zip(members, shares, strict=True) if s]
        return [item for member, call, share in calls for item in self._collect(member, call, share, mode, timeout)]

    def _collect(
        self, member: EncoderWorker, call: Encoding, share: Sequence[Utterance], mode: str, timeout: float | None
    ) -> list[EncodedRef]:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                awaited = [call.summaries] if member.updating is None else [member.updating, call.summaries]
                return call.collect(get(awaited, self.what, timeout)[-1])
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                reason = last_line(error)
                self._give_up(member, reason)
                if attempt == ATTEMPTS:
                    message = f"{self.what}: {ATTEMPTS} actors failed on utterances from {share[0].id!r}: {reason}"
                    raise RuntimeError(message) from error
            with self._lock:
                member = min(self._members.candidates(), key=lambda m: len(m.unfinished()))
                call = self._ask(member, share, mode)
        raise AssertionError("unreachable")

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        """Replace the weights of the parts that the learner trains."""
        if not states:
            return
        with self._lock:
            self._states = ray.put(states)
            self._members.adjust()
            # Those that still load are sent what is current then, when they first get work.
            calls = [(member, self._bring_up_to_date(member)) for member in self._members if member.serves]
        for member, call in calls:
            try:
                get([call], f"{self.what}: update", timeout)
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                self._give_up(member, last_line(error))

    def encoded_total(self) -> int:
        """Recordings that went through a model since the start; those of a lost actor as far as they were known."""
        for member in list(self._members):
            if member.node is None:
                continue
            try:
                (member.total,) = get([member.actor.encoded_total.remote()], f"{self.what}: count", COUNT_TIMEOUT_S)
            except (ray.exceptions.RayActorError, TimeoutError) as error:
                self._give_up(member, last_line(error))
        with self._lock:
            return self._members.lost_total + sum(member.total for member in self._members)

    def _ask(self, member: EncoderWorker, share: Sequence[Utterance], mode: str) -> Encoding:
        if member.states is not self._states:
            self._bring_up_to_date(member)
        call = Encoding.ask(member.actor, share, mode)
        member.calls.append(call.summaries)
        return call

    def _bring_up_to_date(self, member: EncoderWorker) -> ray.ObjectRef:
        """An actor does one thing after another: it has the weights before whatever it is asked next."""
        member.states, member.updating = self._states, member.actor.update.remote(self._states)
        return member.updating

    def _give_up(self, member: EncoderWorker, reason: str) -> None:
        with self._lock:
            self._members.give_up(member, reason)
            self._members.adjust()


class AudioEncoderPool(EncoderPool):
    """Encodes each utterance of a step once; the results stay in the object store, for engines and learner alike."""

    what = "encode"

    def __init__(
        self,
        model: ModelRef,
        config: EncoderConfig,
        learner_mode: EncoderMode,
        options: Callable[[int], dict[str, Any]] = lambda place: {},
    ) -> None:
        """`learner_mode`: what the encoded audio must hold for the learner."""
        self._model, self._config, self._learner_mode = model, config, learner_mode
        super().__init__(config.count, options)

    def _spawn(self, place: int) -> Any:
        model, config = self._model, self._config
        return EncoderActor.options(**encoder_options(config) | self._options(place)).remote(  # type: ignore[attr-defined]
            model.path, model.family, config, model.options
        )

    def _mode(self, for_learner: bool) -> str:
        return self._learner_mode if for_learner else "embeddings"


class VoiceEncoderPool(EncoderPool):
    """What stands in an `AudioEncoderPool`'s place for TTS: texts and prompt voices become prompts of a speech LM."""

    what = "encode voices"

    def __init__(
        self,
        model: ModelRef,
        codec: str,
        config: EncoderConfig,
        learner_mode: VoiceMode,
        options: Callable[[int], dict[str, Any]] = lambda place: {},
    ) -> None:
        """`learner_mode`: `target` also encodes each utterance's own recording, for SFT."""
        self._model, self._codec, self._config, self._learner_mode = model, codec, config, learner_mode
        super().__init__(config.count, options)

    def _spawn(self, place: int) -> Any:
        model, config = self._model, self._config
        return VoiceActor.options(**encoder_options(config) | self._options(place)).remote(  # type: ignore[attr-defined]
            model.path, model.family, self._codec, config, model.options
        )

    def _mode(self, for_learner: bool) -> str:
        return self._learner_mode if for_learner else "prompt"

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        # Nothing that the learner trains stands before a speech LM.
        if states:
            raise ValueError(f"a model that speaks has no {', '.join(states)} to update")
