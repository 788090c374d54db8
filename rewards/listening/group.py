"""Sound as rewards see it: decoded samples, and what models say of them.

Each model hears each sample of a call at most once, in batches over all groups, however many rewards ask. A sample
that a model failed on carries a `Failure` in the place of the result; its neighbours are not touched.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rewards.config import SoundConfig
from rewards.listening.judge import JudgeLostError, Transcript, Wave
from rewards.listening.models import SoundModels
from rewards.listening.pitch import voiced_f0
from rewards.registry import PartScore
from speech.audio import load_audio
from speech.edits import scored_language
from speech.errors import InputError, last_line
from speech.records import Group, Utterance

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
RECORDING_RATE = 16_000
"""Hz, at which recordings of prompt voices are read: what speaker models hear."""
JudgeName = Literal["judge", "second_judge"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something is unknown. A sample that needs it is invalid, never 0."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sound:
    """One sample as sound.

    Attributes:
        wave: float32 mono (samples,) in [−1, 1]; empty when no speech token was sampled.
        sample_rate: Hz.
        tokens: codec ids.
        token_rate: tokens per second.
        finished: a stop token ended it, not the token budget.
        silent: no sample of the wave reaches `silence_peak`; true of an empty wave.
    """

    wave: Wave
    sample_rate: int
    tokens: tuple[int, ...]
    token_rate: float
    finished: bool
    silent: bool

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate


class SoundBatch:
    """The samples of all groups of one call.

    Args:
        groups: in the caller's order.
        sounds: of each group, one per trajectory.
        decode_voices: prompt voices, given by their tokens, as sound; called at most once.
        models: of this process.
        seconds: wall-clock time by stage is added here.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        sounds: Sequence[Sequence[Sound | Failure]],
        decode_voices: Callable[[Sequence[tuple[int, ...]]], Sequence[Sound | Failure]],
        models: SoundModels,
        config: SoundConfig,
        seconds: Counter[str],
    ) -> None:
        self.groups = tuple(groups)
        self.flat = [sound for row in sounds for sound in row]
        self._decode_voices = decode_voices
        self._texts = [group.prompt.utterance for group in groups for _ in group.trajectories]
        self._models = models
        self._config = config
        self._seconds = seconds
        self._known: dict[str, Any] = {}

    @cached_property
    def voices(self) -> dict[tuple[int, ...], Sound | Failure]:
        """The groups' prompt voices by their tokens, decoded when first asked for."""
        tokens = list(dict.fromkeys(group.voice_tokens for group in self.groups if group.voice_tokens))
        return dict(zip(tokens, self._decode_voices(tokens), strict=True))

    def transcripts(self, name: JudgeName, likelihood: bool = False) -> list[Transcript | Failure]:
        """What a judge reads in every sample; silence is an empty transcript, and no judge is asked about it.

        Args:
            likelihood: ask for that of the text as well, where the judge states it: another pass of its model.
        """
        both = f"{name} with likelihood"
        if likelihood or both in self._known:
            return self._memoised(name, lambda: self._transcripts(name, True), both)
        return self._memoised(name, lambda: self._transcripts(name, False))

    def embeddings(self) -> list[NDArray[np.float32] | Failure | None]:
        """Speaker embedding of every sample, of length 1; None where there is silence."""
        return self._memoised("speaker", lambda: self._embeddings(self.flat))

    def voice_embeddings(self) -> dict[tuple[int, ...], NDArray[np.float32] | Failure | None]:
        """Speaker embedding of every prompt voice."""
        voices = self.voices  # before the clock of the speaker model runs
        return self._memoised("voice", lambda: dict(zip(voices, self._embeddings(list(voices.values())), strict=True)))

    def recording_embeddings(self) -> dict[str, NDArray[np.float32] | Failure | None]:
        """Speaker embedding of the recording of every prompt voice, by its file: with what the codec loses of it."""

        def embed() -> dict[str, NDArray[np.float32] | Failure | None]:
            prompts = {u.prompt_audio: u for u in self._texts if u.prompt_audio is not None}
            sounds = [self._recording(utterance) for utterance in prompts.values()]
            return dict(zip(prompts, self._embeddings(sounds), strict=True))

        return self._memoised("recording", embed)

    def _recording(self, utterance: Utterance) -> Sound | Failure:
        """An utterance's prompt voice as it was recorded."""
        whole = replace(utterance, audio=utterance.prompt_audio or "", start=0.0, duration=None, channel=None)
        try:
            wave = load_audio(whole, RECORDING_RATE)
        except InputError as error:
            return Failure(f"prompt_audio: {last_line(error)}")
        silent = float(np.abs(wave).max(initial=0.0)) < self._config.silence_peak
        return Sound(wave, RECORDING_RATE, (), 0.0, True, silent)

    def pitches(self) -> list[NDArray[np.float64] | Failure | None]:
        """F0 of the voiced frames of every sample, in Hz; None where there is silence."""
        return self._memoised(
            "pitch", lambda: self._on_audible(self.flat, "pitch", lambda part: [_pitch(s) for s in part], 1)
        )

    def qualities(self) -> list[dict[str, float] | Failure | None]:
        """DNSMOS of every sample, 1 to 5 by name; None where there is silence."""

        def measure() -> list[dict[str, float] | Failure | None]:
            model = self._models.quality
            return self._on_audible(
                self.flat, "quality", lambda part: [model.score(s.wave, s.sample_rate) for s in part], 1
            )

        return self._memoised("quality", measure)

    def _memoised(self, stage: str, measure: Callable[[], _Result], name: str | None = None) -> _Result:
        """What is measured, by name (that of the stage, whose time it is, where none is given)."""
        name = name or stage
        if name not in self._known:
            with timed(self._seconds, stage):
                self._known[name] = measure()
        known: _Result = self._known[name]
        return known

    def _embeddings(self, sounds: Sequence[Sound | Failure]) -> list[NDArray[np.float32] | Failure | None]:
        model = self._models.speaker

        def embed(part: Sequence[Sound]) -> list[NDArray[np.float32]]:
            return model.embed([s.wave for s in part], part[0].sample_rate)

        return self._on_audible(sounds, "speaker model", embed, self._config.batch)

    def _transcripts(self, name: JudgeName, likelihood: bool) -> list[Transcript | Failure]:
        judge = self._models.judge(name)
        likelihood = likelihood and judge.states_likelihood
        found: list[Transcript | Failure] = []
        by_language: dict[str, list[int]] = {}
        for place, (sound, utterance) in enumerate(zip(self.flat, self._texts, strict=True)):
            language = scored_language(utterance.text, "", utterance.language)
            if isinstance(sound, Failure):
                found.append(sound)
                continue
            found.append(Transcript("", float("inf")))  # what silence says
            if judge.languages is not None and language not in judge.languages:
                found[place] = Failure(f"{name} does not read {language!r}, only {', '.join(sorted(judge.languages))}")
            elif not sound.silent:
                by_language.setdefault(language, []).append(place)
        for language, places in by_language.items():

            def read(part: Sequence[int], language: str = language) -> list[Transcript]:
                sounds = [sound for place in part if isinstance(sound := self.flat[place], Sound)]
                texts = [self._texts[place].text for place in part] if likelihood else None
                return judge.transcribe([s.wave for s in sounds], sounds[0].sample_rate, language, texts)

            batch = len(places) if judge.takes_all else self._config.batch
            for place, result in zip(places, self._by_length(read, places, name, batch), strict=True):
                found[place] = result
        return found

    def _on_audible(
        self,
        sounds: Sequence[Sound | Failure],
        what: str,
        function: Callable[[Sequence[Sound]], Sequence[_Result]],
        batch: int,
    ) -> list[_Result | Failure | None]:
        """The function's results on what is not silent; None for silence."""
        heard = [sound for sound in sounds if isinstance(sound, Sound) and not sound.silent]
        results = iter(map_isolating_failures(function, heard, what, batch))
        return [sound if isinstance(sound, Failure) else None if sound.silent else next(results) for sound in sounds]

    def _by_length(
        self, function: Callable[[Sequence[int]], Sequence[_Result]], places: Sequence[int], what: str, batch: int
    ) -> list[_Result | Failure]:
        """`map_isolating_failures` over samples of similar length, so that little of a batch is padding."""
        order = sorted(places, key=lambda place: _length(self.flat[place]))
        results = dict(zip(order, map_isolating_failures(function, order, what, batch), strict=True))
        return [results[place] for place in places]


@dataclass(frozen=True)
class SoundGroup:
    """A group as sound: what a reward on sound is called with.

    Attributes:
        group: the record, for texts, finish reasons and history.
        sounds: one per trajectory.
        batch: the call that the group belongs to.
        first: place of its first sample in the batch.
    """

    group: Group
    sounds: tuple[Sound | Failure, ...]
    batch: SoundBatch
    first: int

    @property
    def text(self) -> str:
        """What was to be said."""
        return self.group.prompt.utterance.text

    @property
    def language(self) -> str:
        """Language code by which text is compared, guessed from the text's script when the manifest names none."""
        return scored_language(self.text, "", self.group.prompt.utterance.language)

    @property
    def voice(self) -> Sound | Failure | None:
        """The group's prompt voice; None when it has none."""
        return self.batch.voices[self.group.voice_tokens] if self.group.voice_tokens else None

    def transcripts(self, judge: JudgeName = "judge", likelihood: bool = False) -> list[Transcript | Failure]:
        """See `SoundBatch.transcripts`."""
        return self._mine(self.batch.transcripts(judge, likelihood))

    def embeddings(self) -> list[NDArray[np.float32] | Failure | None]:
        return self._mine(self.batch.embeddings())

    def voice_embedding(self) -> NDArray[np.float32] | Failure:
        """Speaker embedding of the prompt voice."""
        if not self.group.voice_tokens:
            return Failure("the group has no prompt voice")
        found = self.batch.voice_embeddings()[self.group.voice_tokens]
        return Failure("the prompt voice is silent") if found is None else found

    def recording_embedding(self) -> NDArray[np.float32] | Failure:
        """Speaker embedding of the recording that the prompt voice is of."""
        path = self.group.prompt.utterance.prompt_audio
        if path is None:
            return Failure("the group has no recorded prompt voice")
        found = self.batch.recording_embeddings()[path]
        return Failure("the recording of the prompt voice is silent") if found is None else found

    def pitches(self) -> list[NDArray[np.float64] | Failure | None]:
        return self._mine(self.batch.pitches())

    def qualities(self) -> list[dict[str, float] | Failure | None]:
        return self._mine(self.batch.qualities())

    def each(self, score: Callable[[Sound], PartScore]) -> list[PartScore]:
        """Score each sound on its own; one that could not be decoded is invalid."""
        return [PartScore(invalid=s.reason) if isinstance(s, Failure) else score(s) for s in self.sounds]

    def _mine(self, results: list[_Result]) -> list[_Result]:
        return results[self.first : self.first + len(self.sounds)]


def map_isolating_failures(
    function: Callable[[Sequence[_Item]], Sequence[_Result]], items: Sequence[_Item], what: str, batch: int
) -> list[_Result | Failure]:
    """Call a function on batches; a batch that fails is tried again one by one, so that only the bad item is lost."""
    results: list[_Result | Failure] = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        try:
            found = list(function(part))
            if len(found) != len(part):
                raise ValueError(f"{len(found)} results for {len(part)} samples")
            results += found
        except JudgeLostError:
            raise
        except Exception as error:
            logger.exception("%s failed on %d samples", what, len(part))
            if len(part) == 1:
                results.append(Failure(f"{what}: {type(error).__name__}: {error}"))
            else:
                results += map_isolating_failures(function, part, what, 1)
    return results


@contextmanager
def timed(seconds: Counter[str], stage: str) -> Iterator[None]:
    """Adds the wall-clock time of the block to a stage."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - start  # type: ignore[assignment]


def _pitch(sound: Sound) -> NDArray[np.float64]:
    return voiced_f0(sound.wave, sound.sample_rate)


def _length(sound: Sound | Failure) -> int:
    return 0 if isinstance(sound, Failure) else len(sound.wave)
