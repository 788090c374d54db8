"""A scored manifest, and keeping it in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from cluster.evaluation.scores import Scores
from cluster.runs import durable
from speech.errors import UserError
from speech.records import BadUtterance

CHUNK = 256
"""Utterances encoded and decoded at a time. It limits the use of the object store; progress is shown per chunk."""

FINGERPRINT = "manifest_fingerprint"
"""Condition of an evaluation: `Manifest.fingerprint`."""

AnyScores = TypeVar("AnyScores", bound=Scores, covariant=True)


TIME = "time"
"""Key of measurements of the clock, which comparisons of runs leave out: all else is the same in every run."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How long the decoding took: reading, encoding and sampling, by all actors together.

    Attributes:
        seconds: wall time.
        audio_seconds: length of what was heard, or spoken.
    """

    seconds: float
    audio_seconds: float

    @property
    def rtf(self) -> float | None:
        """Real-time factor: seconds of decoding per second of audio."""
        return self.seconds / self.audio_seconds if self.audio_seconds else None

    def to_json(self) -> dict[str, float | None]:
        return {"decoding_seconds": self.seconds, "audio_seconds": self.audio_seconds, "rtf": self.rtf}


@dataclass(frozen=True, slots=True)
class Evaluation(Generic[AnyScores]):
    """A scored manifest.

    Attributes:
        scores: of all utterances.
        hypotheses: one per utterance, in its order.
        bad: utterances that could not be evaluated; they are in neither.
        decoding: None where it was not measured, or is of an earlier execution.
    """

    scores: AnyScores
    hypotheses: list[dict[str, Any]]
    bad: tuple[BadUtterance, ...] = ()
    decoding: Decoding | None = field(default=None, compare=False)

    def by_id(self) -> dict[str, str]:
        return {line["id"]: line["hypothesis"] for line in self.hypotheses}

    def table(self) -> tuple[tuple[str, ...], list[list[Any]]]:
        """Columns and rows for trackers, one row per utterance."""
        columns = ("id", "language", "reference", "hypothesis", "wer")
        return columns, [[line.get(column) for column in columns] for line in self.hypotheses]


def load_evaluation(path: Path, conditions: Mapping[str, Any], kind: type[AnyScores]) -> Evaluation[AnyScores] | None:
    """An evaluation written by `store_evaluation` under the same conditions, or None when there is none.

    Args:
        kind: what its scores are, which the file does not say.

    Raises:
        UserError: the file is damaged, or of another kind.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made_under, asked = content["conditions"], dict(conditions)
        if FINGERPRINT not in made_under:  # files of earlier releases do not say it
            asked.pop(FINGERPRINT, None)
        if made_under != asked:
            return None
        bad = tuple(BadUtterance(name, reason) for name, reason in content.get("rejected", {}).items())
        return Evaluation(kind.from_json(content["summary"]), content["hypotheses"], bad)
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it to evaluate again") from error


def timed(evaluation: Evaluation[Scores]) -> dict[str, Any]:
    """What files say of the clock, under a key of its own."""
    return {} if evaluation.decoding is None else {TIME: evaluation.decoding.to_json()}


def store_evaluation(path: Path, evaluation: Evaluation[Scores], conditions: Mapping[str, Any]) -> None:
    """Write an evaluation whole, so that a resumed run need not repeat it."""
    content = {
        "conditions": dict(conditions),
        "summary": evaluation.scores.to_json(),
        "rejected": {item.id: item.reason for item in evaluation.bad},
        "hypotheses": evaluation.hypotheses,
        **timed(evaluation),
    }
    durable.replace(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
