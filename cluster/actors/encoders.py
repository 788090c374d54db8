"""Pools of the actors that encode utterances: into prompts for engines and learner, or into a codec's tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from cluster.actors.calls import Request, Result
from cluster.actors.model import ModelRef
from cluster.actors.pool import ActorPool
from cluster.actors.remote import get
from cluster.actors.roster import ATTEMPTS
from rollout.actors import CodecActor, Encoded, EncodedRef, EncoderActor, Encoding, VoiceActor
from rollout.config import EncoderConfig
from rollout.environment import encoder_options
from speech.records import BadUtterance, Utterance

if TYPE_CHECKING:
    from rollout.encoders.encoder import EncoderMode
    from rollout.encoders.voices import VoiceMode

Options = Callable[[int], dict[str, Any]]
"""More of Ray's options for the actor in a place, such as its bundle."""
SYSTEMIC = 3
"""So many utterances in a row that cost their actors: it is not the utterances."""


class UtterancePool(ActorPool[Utterance, Result | BadUtterance]):
    """Actors that encode utterances, in contiguous shares.

    An utterance that costs `ATTEMPTS` actors, the last of them alone, is a bad one. `SYSTEMIC` of them, and none in
    between that an actor manages, end the run: then the actors are at fault.
    """

    component, work = "encoder", "encode"
    alone_after = ATTEMPTS - 1
    failures = (RayError,)  # errors too: after one a process may fail on everything (CUDA); another one tells

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._encoded = self._lost_in_a_row = 0
        super().__init__(config.count)

    def encoded_total(self) -> int:
        """Recordings that went through a model since the start; not those of answers that were lost with an actor."""
        return self._encoded

    def _exhausted(self, items: list[Utterance], reason: str, error: Exception) -> Sequence[Result | BadUtterance]:
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= SYSTEMIC:
            raise RuntimeError(f"{self.what}: {SYSTEMIC} utterances in a row cost {ATTEMPTS} actors each: {reason}")
        lost = f"{self.what}: {ATTEMPTS} actors failed on it: {reason}"
        return [BadUtterance(item.id, lost, lethal=True) for item in items]

    def _request(
        self, answer: ray.ObjectRef, results: Callable[[Encoded[Any]], Sequence[Result | BadUtterance]]
    ) -> Request[Result | BadUtterance]:
        """`answer` is a reference to an `Encoded`."""

        def counted(encoded: Encoded[Any]) -> Sequence[Result | BadUtterance]:
            self._encoded += encoded.recordings
            self._lost_in_a_row = 0
            return results(encoded)

        return Request(answer, counted)


class EncoderPool(UtterancePool[EncodedRef]):
    """What makes prompts of utterances: of their sound in ASR, of text and voice in TTS.

    What was encoded outlives its actor: the controller owns the references.
    """

    @abstractmethod
    def _mode(self, for_learner: bool) -> str:
        """What the actor is asked for."""

    def encode(
        self, utterances: Sequence[Utterance], timeout: float | None, for_learner: bool = False
    ) -> list[EncodedRef | BadUtterance]:
        """References to the prompts, or what is wrong with an utterance, in order.

        Args:
            timeout: of one attempt, in seconds.
            for_learner: with what the learner needs, and not only what an engine does.

        Raises:
            RuntimeError: actors die or do not answer, whatever they are given, or do not start.
        """
        mode = self._mode(for_learner)

        def ask(actor: Any, items: list[Utterance]) -> Request[EncodedRef | BadUtterance]:
            encoding = Encoding.ask(actor, items, mode)
            return self._request(encoding.summaries, encoding.collect)

        return self._run(utterances, ask, timeout)

    def update(self, states: dict[str, Any], timeout: float | None) -> None:
        """Replace the weights of the parts that the learner trains, before an actor's next work."""
        if states:
            stored = ray.put(states)
            self._prepare(lambda actor: actor.update.remote(stored), timeout)


class AudioEncoderPool(EncoderPool):
    """Encodes each utterance of a step once; the results stay in the object store, for engines and learner alike."""

    what = "encode"

    def __init__(
        self, model: ModelRef, config: EncoderConfig, learner_mode: EncoderMode, options: Options = lambda place: {}
    ) -> None:
        """`learner_mode`: what the encoded audio must hold for the learner."""
        self._model, self._learner_mode, self._options = model, learner_mode, options
        super().__init__(config)

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
        options: Options = lambda place: {},
    ) -> None:
        """`learner_mode`: `target` also encodes each utterance's own recording, for SFT."""
        self._model, self._codec, self._learner_mode, self._options = model, codec, learner_mode, options
        super().__init__(config)

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


class CodecPool(UtterancePool[tuple[int, ...]]):
    """Makes codec tokens of recordings, for a reward model that reads them."""

    what, component = "encode recordings", "codec"

    def __init__(self, codec: str, config: EncoderConfig) -> None:
        """`codec`: the codec's folder."""
        self._codec = codec
        super().__init__(config)

    def describe(self, timeout: float) -> tuple[int, Any]:
        """Number of the codec's tokens, and their features (`Codec.features`). Waits for the actors to start.

        Raises:
            TimeoutError: they do not start in time.
        """
        get(self.start(), "codec start", timeout)
        actor = self.actors[0]
        size, features = get([actor.size.remote(), actor.features.remote()], "codec features", 60.0)
        return size, features

    def tokenise(self, utterances: Sequence[Utterance], timeout: float | None) -> list[tuple[int, ...] | BadUtterance]:
        """Codec ids of each utterance's recording, or what is wrong with it.

        Args:
            timeout: of one attempt, in seconds.

        Raises:
            RuntimeError: actors die or do not answer, whatever they are given, or do not start.
        """

        def ask(actor: Any, items: list[Utterance]) -> Request[tuple[int, ...] | BadUtterance]:
            return self._request(actor.tokenise.remote(items), lambda encoded: encoded.values)

        return self._run(utterances, ask, timeout)

    def _spawn(self, place: int) -> Any:
        return CodecActor.options(**encoder_options(self._config)).remote(self._codec, self._config)  # type: ignore[attr-defined]
