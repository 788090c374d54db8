"""A scored manifest, and keeping it in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Evaluation(Generic[AnyScores]):
    """A scored manifest.

    Attributes:
        scores: of all utterances.
        hypotheses: one per utterance, in its order.
        bad: utterances that could not be evaluated; they are in neither.
    """

    scores: AnyScores
    hypotheses: list[dict[str, Any]]
    bad: tuple[BadUtterance, ...] = ()

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


def store_evaluation(path: Path, evaluation: Evaluation[Scores], conditions: Mapping[str, Any]) -> None:
    """Write an evaluation whole, so that a resumed run need not repeat it."""
    content = {
        "conditions": dict(conditions),
        "summary": evaluation.scores.to_json(),
        "rejected": {item.id: item.reason for item in evaluation.bad},
        "hypotheses": evaluation.hypotheses,
    }
    durable.replace(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
