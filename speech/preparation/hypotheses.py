"""Reading what a recogniser made of a manifest."""

from __future__ import annotations

from pathlib import Path

from speech.errors import InputError, Problem
from speech.manifests.jsonl import read_objects


def load_hypotheses(path: str | Path) -> dict[str, str]:
    """Hypotheses by utterance id from jsonl lines with `id` and `hypothesis`; other keys are left alone.

    Raises:
        InputError: the file is missing, or lines are bad; all of them are named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no hypotheses", [Problem(file=str(path), line=None, key=None, message="no such file")])
    problems: list[Problem] = []
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for item in read_objects(path):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        number, values = item
        bad = [key for key in ("id", "hypothesis") if not isinstance(values.get(key), str)]
        for key in bad:
            message = "must be a string" if key in values else "missing"
            problems.append(Problem(file=str(path), line=number, key=key, message=message))
        if bad:
            continue
        name = values["id"]
        if name in found:
            message = f"duplicate {name!r}, first on line {lines[name]}"
            problems.append(Problem(file=str(path), line=number, key="id", message=message))
            continue
        found[name], lines[name] = values["hypothesis"], number
    if problems:
        raise InputError(f"{path}: bad hypotheses", problems)
    return found
