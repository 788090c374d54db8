"""Scoring a Token2Text model on a manifest: likelihood of the texts, what it reads, how it judges attributes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from cluster.evaluation.result import Evaluation
from learner.token2text.model import UNKNOWN, Token2TextConfig
from learner.token2text.plan import Prediction, SpeechText
from speech.edits import TranscriptPair, character_edits, corpus_summary, word_edits
from speech.records import Utterance
from speech.text import NORMALISER_VERSION


def score_predictions(
    model: Token2TextConfig,
    utterances: Sequence[Utterance],
    items: Sequence[SpeechText],
    predictions: Sequence[Prediction],
) -> Evaluation:
    """Compare what was read with what should have been.

    Returns:
        The keys of `corpus_summary` (`wer`, `cer`, …), of greedy CTC predictions; `nll`, −log P(text) per character
        over the texts that fit into their frames, None when none does; `impossible`, the number of the others;
        `attributes`, the share of correct classes of each attribute among the utterances that state it, None where none
        does.
    """
    lines: list[dict[str, Any]] = []
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
    fitting = [(r.nll, len(i.text_ids)) for r, i in zip(predictions, items, strict=True) if math.isfinite(r.nll)]
    pairs = [TranscriptPair(line["reference"], line["hypothesis"], line["language"]) for line in lines]
    summary = {
        **corpus_summary(pairs),
        "normaliser": NORMALISER_VERSION,
        "nll": sum(nll for nll, _ in fitting) / sum(labels for _, labels in fitting) if fitting else None,
        "impossible": len(items) - len(fitting),
        "attributes": {name: _accuracy(place, items, predictions) for place, name in enumerate(model.attributes)},
    }
    return Evaluation(summary, lines)


def _accuracy(place: int, items: Sequence[SpeechText], predictions: Sequence[Prediction]) -> float | None:
    right = [
        float(prediction.attributes[place] == item.attributes[place])
        for item, prediction in zip(items, predictions, strict=True)
        if item.attributes[place] != UNKNOWN
    ]
    return statistics.fmean(right) if right else None


def describe(summary: dict[str, Any]) -> str:
    """The scores in one line."""
    nll = "–" if summary["nll"] is None else f"{summary['nll']:.3f}"
    parts = [f"NLL {nll} a character", f"CER {summary['cer']:.1%}", f"WER {summary['wer']:.1%}"]
    parts += [f"{name} {value:.1%}" for name, value in summary["attributes"].items() if value is not None]
    if summary["impossible"]:
        parts.append(f"{summary['impossible']} texts too long for their speech")
    return ", ".join(parts)


def scores(summary: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation that go into the metrics."""
    found = {key: summary[key] for key in ("nll", "cer", "wer")} | {
        f"attributes/{name}": value for name, value in summary["attributes"].items()
    }
    return {key: value for key, value in found.items() if value is not None}
