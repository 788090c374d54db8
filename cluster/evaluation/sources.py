"""Files of hypotheses, as two of them are compared: evaluations, run folders, and jsonl of anyone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speech.errors import UserError

Judge = Literal["first", "second"]
AFTER = "evaluation-after.json"


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a system made of one utterance.

    Attributes:
        text: transcript, or what the judge heard; None where the sample failed.
        reference: None where the file has none.
        language: as the file says; None where it does not.
        problem: why there is no text.
        scored: false where the evaluation found that nobody can score the reference.
    """

    text: str | None
    reference: str | None
    language: str | None
    problem: str = ""
    scored: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """A file of hypotheses.

    Attributes:
        path: of the file that was read.
        hypotheses: by id.
        speaks: it is of a model that speaks, as two judges heard it.
        normaliser: the version of the rules by which the file's own figures were made; None where it does not say.
    """

    path: Path
    hypotheses: Mapping[str, Hypothesis]
    speaks: bool
    normaliser: str | None


def read_source(path: Path, judge: Judge = "first") -> Source:
    """Read the hypotheses of a run's folder (after training), of an evaluation, or of a jsonl file.

    A line of jsonl has `id`, and `hypothesis` or `text`; beside a `hypothesis`, `text` is the reference. `reference`
    and `language` may be left out.

    Args:
        judge: of models that speak, whose transcripts.

    Raises:
        UserError: there is no such file, it is neither of these, an id occurs twice, or there is no second judge.
    """
    path = path / AFTER if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    lines, normaliser = _evaluation(text) or (_lines(path, text), _normaliser_beside(path))
    hypotheses: dict[str, Hypothesis] = {}
    speaks = any("hypothesis_second" in line for line in lines)
    if judge == "second" and not speaks:
        raise UserError(f"{path}: has no transcripts of a second judge, so --judge second cannot be")
    for number, line in enumerate(lines, start=1):
        name, found = _hypothesis(f"{path}: hypothesis {number}", line, judge)
        if name in hypotheses:
            raise UserError(f"{path}: the id {name!r} occurs twice")
        hypotheses[name] = found
    if not hypotheses:
        raise UserError(f"{path}: holds no hypotheses")
    return Source(path, hypotheses, speaks, normaliser)


def _evaluation(text: str) -> tuple[list[Any], str | None] | None:
    """The lines and the normaliser of an evaluation; None for a text that is none."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("hypotheses"), list):
        return None
    summary = content.get("summary")
    normaliser = summary.get("normaliser") if isinstance(summary, dict) else None
    return content["hypotheses"], normaliser


def _lines(path: Path, text: str) -> list[Any]:
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            message = f"{path}:{number}: neither an evaluation of a run nor jsonl ({error})"
            raise UserError(message) from error
    return lines


def _normaliser_beside(path: Path) -> str | None:
    """What `speechrl evaluate` has written beside its hypotheses."""
    try:
        content = json.loads(path.with_suffix(".summary.json").read_text(encoding="utf-8"))
        return str(content["normaliser"])
    except (OSError, json.JSONDecodeError, LookupError, TypeError):
        return None  # of another's file nothing is known


def _hypothesis(where: str, line: Any, judge: Judge) -> tuple[str, Hypothesis]:
    if not isinstance(line, dict) or "id" not in line or not ({"hypothesis", "text"} & line.keys()):
        raise UserError(f"{where}: needs `id`, and `hypothesis` or `text`")
    key, rate = ("hypothesis_second", "wer_second") if judge == "second" else ("hypothesis", "wer")
    text = line.get(key) if "hypothesis" in line else line["text"]
    reference = line.get("reference", line.get("text") if "hypothesis" in line else None)
    for name, value in ((key, text), ("reference", reference), ("language", line.get("language"))):
        if not isinstance(value, str | None):
            raise UserError(f"{where}: `{name}` is no text")
    problems: Iterable[Any] = line.get("problems") or ()
    # An evaluation of speech gives no rate to a text that holds nothing to say, whatever was heard.
    scored = not ("hypothesis_second" in line and text is not None and line.get(rate) is None)
    problem = "; ".join(map(str, problems)) or "no transcript" if text is None else ""
    return str(line["id"]), Hypothesis(text, reference, line.get("language"), problem, scored)
