"""What an evaluation comes to: its numbers, those of them that are metrics, their JSON, and their row of a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self

from cluster.evaluation.hallucinations import Hallucinations
from cluster.evaluation.written import WrittenRates
from speech.edits import ErrorRates
from speech.errors import first_of

SAMPLED = "sampled"
"""Under this key JSON, and each line of the hypotheses, holds what one sample per utterance gave; metrics have it as a
prefix."""

_NOT_WRITTEN = WrittenRates()
_NAMED = 5  # ids in a line below a table

_KEYS = {"substitutions": "sub", "deletions": "del", "insertions": "ins"}
"""Numbers whose key in JSON is not their name."""


@dataclass(frozen=True, kw_only=True)
class Scores(ABC):
    """The scores of one manifest with greedy decoding, whatever the model does.

    Attributes:
        headings: of the columns of a table.
        sampled: the same of one sample per utterance; None when none were drawn.
    """

    headings: ClassVar[tuple[str, ...]]
    sampled: Self | None = None

    def metrics(self) -> dict[str, float]:
        """The numbers of a validation, which a run logs as `valid/<name>`; those that are known."""
        found = self._validated()
        if self.sampled is not None:
            found |= {f"{SAMPLED}/{name}": value for name, value in self.sampled._validated().items()}
        return {name: value for name, value in found.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The content of `before` and `after` in `summary.json`, and of `summary` in an evaluation's file."""
        return self._write() | ({} if self.sampled is None else {SAMPLED: self.sampled.to_json()})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The scores that `to_json` wrote.

        Raises:
            KeyError: a number is missing.
        """
        sampled = cls.from_json(content[SAMPLED]) if SAMPLED in content else None
        return cls(**cls._read(content), sampled=sampled)

    @property
    @abstractmethod
    def score(self) -> float | None:
        """By which the best checkpoint is chosen: lower is better. None when nothing is known."""

    @abstractmethod
    def cells(self) -> list[str]:
        """The greedy scores under `headings`."""

    def languages_cells(self) -> dict[str, list[str]]:
        """The same by language, where that is known."""
        return {}

    def notes(self) -> list[str]:
        """Lines below the table, where there is more to say."""
        return []

    @abstractmethod
    def _validated(self) -> dict[str, float | None]:
        """The greedy numbers of a validation, by their metrics' names."""

    @abstractmethod
    def _write(self) -> dict[str, Any]:
        """The greedy scores as JSON."""

    @classmethod
    @abstractmethod
    def _read(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Fields from JSON, without `sampled`."""


@dataclass(frozen=True, kw_only=True)
class TranscriptScores(Scores):
    """Of a model that hears.

    Attributes:
        overall: of all utterances.
        languages: of those in each language, by its code.
        normaliser: the version of `speech.text` by which the texts were compared.
        wer_whisper: WER of the English utterances by Whisper's own rules, unmodified, to compare with leaderboards;
            None where none is English.
        written: errors in case and punctuation.
        hallucinations: transcripts that cannot be of their audio; None where its lengths are not known.
    """

    headings = ("WER", "95 % interval", "CER", "sub", "del", "ins", "words", "utterances")
    overall: ErrorRates
    languages: Mapping[str, ErrorRates]
    normaliser: str
    wer_whisper: float | None
    written: WrittenRates = _NOT_WRITTEN
    hallucinations: Hallucinations | None = None

    @property
    def score(self) -> float | None:
        return self.overall.wer

    def cells(self) -> list[str]:
        return _cells(self.overall)

    def languages_cells(self) -> dict[str, list[str]]:
        return {code: _cells(rates) for code, rates in self.languages.items()}

    def notes(self) -> list[str]:
        notes = []
        if self.wer_whisper is not None:
            notes.append(f"WER of the English utterances by Whisper's unmodified rules: {self.wer_whisper:.2%}")
        names = {"WER_C": self.written.wer_c, "WER_PC": self.written.wer_pc, "PER": self.written.per}
        if known := [f"{name} {rate:.2%}" for name, rate in names.items() if rate is not None]:
            notes.append(f"with case and punctuation: {', '.join(known)}")
        if self.hallucinations is not None:
            found = self.hallucinations
            ids = f": {first_of(found.rules, _NAMED)}" if found.rules else ""
            notes.append(f"hallucinations: {len(found.rules):,}, {found.per_hour:.1f} per hour of audio{ids}")
        return notes

    def _validated(self) -> dict[str, float | None]:
        return {"wer": self.overall.wer, "cer": self.overall.cer}

    def _write(self) -> dict[str, Any]:
        languages = {code: _rates_to_json(rates) for code, rates in self.languages.items()}
        found = self.hallucinations
        return {**_rates_to_json(self.overall), "languages": languages, "normaliser": self.normaliser,
                "wer_whisper": self.wer_whisper, **self.written._asdict(),
                "hallucinations": None if found is None else found.to_json()}  # fmt: skip

    @classmethod
    def _read(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "overall": _rates_from_json(content),
            "languages": {code: _rates_from_json(rates) for code, rates in content["languages"].items()},
            "normaliser": content["normaliser"],
            "wer_whisper": content["wer_whisper"],
            # Evaluations of earlier releases lack them.
            "written": WrittenRates(*(content.get(name) for name in WrittenRates._fields)),
            "hallucinations": None
            if (found := content.get("hallucinations")) is None
            else Hallucinations.from_json(found),
        }


@dataclass(frozen=True, kw_only=True)
class SpeechScores(Scores):
    """Of a model that speaks. What no sample has a value for is None.

    Attributes:
        wer, wer_mean: of the whole corpus, and the mean over utterances (the protocol of seed-tts-eval), by the judge
            of the training.
        wer_capped: as `wer`, but a sample has at most as many errors as its text has units, and one that failed has as
            many: to fail is never better than to be heard.
        wer_second, wer_second_mean: the same by the judge that training never hears.
        speaker_similarity: cosine to the prompt voice as the codec gives it (SIM-r), mean over samples.
        speaker_similarity_original: cosine to the recording of the prompt voice (SIM-o), mean over samples.
        duration_mean: seconds.
        f0_std: semitones, mean over samples.
        no_stop_rate: share of samples that no stop token ended.
        utterances: how many were spoken.
        failed: how many of them something failed on; they are left out of what they have no value for.
        normaliser: the version of `speech.text` by which the texts were compared.
        wer_seed_tts, wer_seed_tts_second: mean WER over utterances as seed-tts-eval computes it, by both judges; a
            sample that failed is wrong in every word.
        f0_mean: Hz, mean over samples.
        dnsmos: overall score, mean over samples; None where it was not measured.
        characters_per_second, words_per_second: of the texts, over the length of their samples.
        failures: the first of those that failed, with their reasons.
    """

    headings = ("WER", "mean", "second", "mean", "SIM-r", "seconds", "no stop", "texts")
    wer: float | None
    wer_mean: float | None
    wer_capped: float | None
    wer_second: float | None
    wer_second_mean: float | None
    speaker_similarity: float | None
    speaker_similarity_original: float | None
    duration_mean: float | None
    f0_std: float | None
    no_stop_rate: float | None
    utterances: int
    failed: int
    normaliser: str
    wer_seed_tts: float | None = None
    wer_seed_tts_second: float | None = None
    f0_mean: float | None = None
    dnsmos: float | None = None
    characters_per_second: float | None = None
    words_per_second: float | None = None
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        return self.wer_capped

    def cells(self) -> list[str]:
        rates = (self.wer, self.wer_mean, self.wer_second, self.wer_second_mean)
        return [
            *(_cell(rate, ".2%") for rate in rates),
            _cell(self.speaker_similarity, ".3f"),
            _cell(self.duration_mean, ".2f"),
            _cell(self.no_stop_rate, ".1%"),
            _cell(self.utterances, ","),
        ]

    def notes(self) -> list[str]:
        first, second = (_cell(rate, ".2%") for rate in (self.wer_seed_tts, self.wer_seed_tts_second))
        notes = [f"WER by seed-tts-eval's protocol, failed samples as 100 %: {first}, second judge {second}"]
        if (cosine := self.speaker_similarity_original) is not None:
            notes.append(f"SIM-o, to the recordings of the prompt voices: {cosine:.3f}")
        rates = [_cell(rate, ".2f") for rate in (self.characters_per_second, self.words_per_second)]
        pitch = f"F0 {_cell(self.f0_mean, '.0f')} Hz, spread {_cell(self.f0_std, '.2f')} semitones"
        quality = "" if self.dnsmos is None else f"; DNSMOS {self.dnsmos:.2f}"
        notes.append(f"{rates[0]} characters and {rates[1]} words a second; {pitch}{quality}")
        if self.failed:
            named = first_of((f"{name} ({reason})" for name, reason in self.failures.items()), _NAMED)
            notes.append(f"failed: {self.failed:,}: {named}")
        return notes

    def _validated(self) -> dict[str, float | None]:
        return {
            "wer": self.wer,
            "wer_capped": self.wer_capped,
            "wer_second": self.wer_second,
            "speaker_similarity": self.speaker_similarity,
            "speaker_similarity_original": self.speaker_similarity_original,
            "duration_mean": self.duration_mean,
            "no_stop_rate": self.no_stop_rate,
        }

    def _write(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names()}

    @classmethod
    def _read(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        # Evaluations of earlier releases lack these two, and what has a default.
        new = {name: content.get(name) for name in ("wer_capped", "speaker_similarity_original")}
        later = {f.name for f in fields(cls) if f.default is not MISSING or f.default_factory is not MISSING}
        old = [name for name in cls._names() if name not in new and name not in later]
        return {name: content[name] for name in (*old, *(later & content.keys() - {SAMPLED}))} | new

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name != SAMPLED]


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cells(rates: ErrorRates) -> list[str]:
    counts = (rates.substitutions, rates.deletions, rates.insertions, rates.words, rates.utterances)
    interval = f"{100 * rates.wer_low:.1f} – {rates.wer_high:.1%}"
    return [f"{rates.wer:.2%}", interval, f"{rates.cer:.2%}", *(f"{count:,}" for count in counts)]


def _rates_to_json(rates: ErrorRates) -> dict[str, Any]:
    return {_KEYS.get(field.name, field.name): getattr(rates, field.name) for field in fields(rates)}


def _rates_from_json(content: Mapping[str, Any]) -> ErrorRates:
    return ErrorRates(**{field.name: content[_KEYS.get(field.name, field.name)] for field in fields(ErrorRates)})
