"""Scoring a Token2Text model on a manifest: likelihood of the texts, what it reads, how it judges attributes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.evaluation.result import Evaluation
from cluster.evaluation.scores import TranscriptScores
from learner.token2text.model import UNKNOWN, Token2TextConfig
from learner.token2text.plan import Prediction, SpeechText
from speech.edits import TranscriptPair, character_edits, corpus_rates, whisper_rate, word_edits
from speech.records import Utterance
from speech.text import NORMALISER_VERSION


@dataclass(frozen=True, kw_only=True)
class Token2TextScores(TranscriptScores):
    """Of a model that reads speech tokens: of greedy CTC predictions, and of what it computes for a given text.

    Attributes:
        nll: −log P(text) per character over the texts that fit into their frames; None when none does.
        impossible: the number of the others.
        attributes: share of correct classes of each attribute among the utterances that state it; None where none does.
    """

    nll: float | None
    impossible: int
    attributes: Mapping[str, float | None]

    @property
    def score(self) -> float | None:
        return self.overall.cer

    def describe(self) -> str:
        """The scores in one line."""
        nll = "–" if self.nll is None else f"{self.nll:.3f}"
        parts = [f"NLL {nll} a character", f"CER {self.overall.cer:.1%}", f"WER {self.overall.wer:.1%}"]
        parts += [f"{name} {value:.1%}" for name, value in self.attributes.items() if value is not None]
        if self.impossible:
            parts.append(f"{self.impossible} texts too long for their speech")
        return ", ".join(parts)

    def _validated(self) -> dict[str, float | None]:
        attributes = {f"attributes/{name}": value for name, value in self.attributes.items()}
        return {"nll": self.nll, "cer": self.overall.cer, "wer": self.overall.wer} | attributes

    def _write(self) -> dict[str, Any]:
        own = {"nll": self.nll, "impossible": self.impossible, "attributes": dict(self.attributes)}
        return super()._write() | own

    @classmethod
    def _read(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        return super()._read(content) | {name: content[name] for name in ("nll", "impossible", "attributes")}


def score_predictions(
    model: Token2TextConfig,
    utterances: Sequence[Utterance],
    items: Sequence[SpeechText],
    predictions: Sequence[Prediction],
) -> Evaluation[Token2TextScores]:
    """Compare what was read with what should have been."""
    lines: list[dict[str, Any]] = []
    pairs: list[TranscriptPair] = []
    for utterance, item, prediction in zip(utterances, items, predictions, strict=True):
        text = model.text(prediction.labels)
        line = {
            "id": utterance.id,
            "audio": utterance.audio,
            "language": utterance.language,
            "reference": utterance.text,
            "hypothesis": text,
            "wer": word_edits(utterance.text, text, utterance.language).rate,
            "cer": character_edits(utterance.text, text, utterance.language).rate,
            "nll": prediction.nll / len(item.text_ids) if math.isfinite(prediction.nll) else None,
            "attributes": {
                name: classes[place]
                for (name, classes), place in zip(model.attributes.items(), prediction.attributes, strict=True)
            },
        }
        lines.append(line)
        pairs.append(TranscriptPair(utterance.text, text, utterance.language))
    fitting = [(r.nll, len(i.text_ids)) for r, i in zip(predictions, items, strict=True) if math.isfinite(r.nll)]
    overall, languages = corpus_rates(pairs)
    scores = Token2TextScores(
        overall=overall,
        languages=languages,
        normaliser=NORMALISER_VERSION,
        wer_whisper=whisper_rate(pairs),
        nll=sum(nll for nll, _ in fitting) / sum(labels for _, labels in fitting) if fitting else None,
        impossible=len(items) - len(fitting),
        attributes={name: _accuracy(place, items, predictions) for place, name in enumerate(model.attributes)},
    )
    return Evaluation(scores, lines)


def _accuracy(place: int, items: Sequence[SpeechText], predictions: Sequence[Prediction]) -> float | None:
    right = [
        float(prediction.attributes[place] == item.attributes[place])
        for item, prediction in zip(items, predictions, strict=True)
        if item.attributes[place] != UNKNOWN
    ]
    return statistics.fmean(right) if right else None
