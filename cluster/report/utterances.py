"""The test utterances before beside after, with what was right and wrong in every word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.report.runs import STAGES, RunRecord
from speech.edits import EditCounts, scored_language, word_alignment, word_edits
from speech.text import is_spaced
from speech.text.readings import ELSE

ROWS = 1500
"""Utterances on a page, of all runs together; the most changed stay."""

_JUDGES = (("training judge", "hypothesis"), ("second judge", "hypothesis_second"))

JudgedEdits = dict[str, dict[str, EditCounts]]


def speaks(run: RunRecord) -> bool:
    """Whether the run's model speaks: then its evaluations hold what judges heard."""
    return any("hypothesis_second" in line for stage in STAGES for line in run.hypotheses(stage)[:1])


def judged(run: RunRecord) -> JudgedEdits:
    """Edits of the whole test split by judge and stage. A model that hears has one judge, the reference (``).

    Words are compared here, even where the reward compares other units. Utterances of which one stage has no transcript
    are left out of both.
    """
    lines = {stage: {line["id"]: line for line in run.hypotheses(stage)} for stage in STAGES}
    common = [name for name in lines["before"] if name in lines["after"]]
    found: JudgedEdits = {}
    for judge, key in _JUDGES if speaks(run) else (("", "hypothesis"),):
        heard = [name for name in common if all(lines[stage][name].get(key) is not None for stage in STAGES)]
        if heard:
            found[judge] = {
                stage: sum((_edits(lines[stage][name], key) for name in heard), EditCounts()) for stage in STAGES
            }
    return found


def utterance_rows(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the page's table shows.

    Returns:
        `rows`, most changed first, and `left_out`, the number of those that are not there. A row has the number of its
        `run`, `id`, `lang`, `seconds`, `reference`, by stage its `sides`, and `change`: errors after less errors
        before. A side has `heard`, one per judge: its `judge`, `words` (see `aligned`), numbers of `edits` (S, D, I)
        and `text` as it was written; `cut` when the token budget ended it, and `problems`.
    """
    rows = [row for number, run in enumerate(runs) for row in _rows(run, number)]
    rows.sort(key=lambda row: (-abs(row["change"] or 0), -row["errors"], row["run"], row["id"]))
    return {"rows": rows[:ROWS], "left_out": max(0, len(rows) - ROWS)}


def _rows(run: RunRecord, number: int) -> list[dict[str, Any]]:
    lines = {stage: {line["id"]: line for line in run.hypotheses(stage)} for stage in STAGES}
    judges = _JUDGES if speaks(run) else (("", "hypothesis"),)
    rows = []
    for name in dict.fromkeys(name for stage in STAGES for name in lines[stage]):
        its = {stage: lines[stage][name] for stage in STAGES if name in lines[stage]}
        line = its.get("after") or its["before"]
        sides = {stage: _side(of_stage, judges) for stage, of_stage in its.items()}
        errors = {stage: sum(side["heard"][0]["edits"]) for stage, side in sides.items() if side["heard"]}
        rows.append(
            {
                "run": number,
                "id": str(name),
                "lang": scored_language(line["reference"], line.get("hypothesis") or "", line.get("language")),
                "seconds": line.get("seconds"),
                "reference": line["reference"],
                "sides": sides,
                "change": errors["after"] - errors["before"] if len(errors) == len(STAGES) else None,
                "errors": errors.get("after", errors.get("before", 0)),
            }
        )
    return rows


def _side(line: Mapping[str, Any], judges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    heard = []
    for judge, key in judges:
        if line.get(key) is not None:
            counts = _edits(line, key)
            heard.append(
                {
                    "judge": judge,
                    "words": aligned(line["reference"], line[key], line.get("language")),
                    "edits": [counts.substitutions, counts.deletions, counts.insertions],
                    "text": line[key],
                }
            )
    cut = line.get("finish_reason") == "length" or line.get("finished") is False
    return {"heard": heard, "cut": cut, "problems": list(line.get("problems", ())), "seconds": line.get("seconds")}


def _edits(line: Mapping[str, Any], key: str) -> EditCounts:
    return word_edits(line["reference"], line[key], line.get("language"))


def aligned(reference: str, hypothesis: str, language: str | None) -> list[list[str]]:
    """The alignment: `["=", text]`, `["s", reference, hypothesis]`, `["d", reference]` or `["i", hypothesis]`.

    Texts are in scored form, which is what errors are counted in.
    """
    between = " " if is_spaced(scored_language(reference, hypothesis, language)) else ""
    found: list[list[str]] = []
    for kind, first, second in word_alignment(reference, hypothesis, language):
        ref, hyp = (between.join(unit.removesuffix(ELSE).strip() for unit in units) for units in (first, second))
        match kind:
            case "equal":
                found.append(["=", ref])
            case "substitute":
                found.append(["s", ref, hyp])
            case "delete":
                found.append(["d", ref])
            case "insert":
                found.append(["i", hyp])
    return found
