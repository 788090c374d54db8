"""A scored manifest, and keeping it in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.runs import durable
from speech.errors import UserError

CHUNK = 256
"""Utterances encoded and decoded at a time: bounds what stands in the object store, and gives the display a pulse."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A scored manifest.

    Attributes:
        summary: `wer`, `cer`, edit counts and intervals, overall and in `languages`.
        hypotheses: one per utterance, in its order.
    """

    summary: dict[str, Any]
    hypotheses: list[dict[str, Any]]

    def by_id(self) -> dict[str, str]:
        return {line["id"]: line["hypothesis"] for line in self.hypotheses}


def load_evaluation(path: Path, conditions: Mapping[str, Any]) -> Evaluation | None:
    """An evaluation written by `store_evaluation` under the same conditions, or None when there is none."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        same = content["conditions"] == conditions
        return Evaluation(content["summary"], content["hypotheses"]) if same else None
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it to evaluate again") from error


def store_evaluation(path: Path, evaluation: Evaluation, conditions: Mapping[str, Any]) -> None:
    """Write an evaluation whole, so that a resumed run need not repeat it."""
    content = {
        "conditions": dict(conditions),
        "summary": evaluation.summary,
        "hypotheses": evaluation.hypotheses,
    }
    durable.replace(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
