"""The table of docs/model-families.md: which test checks what of which model family, as pytest collects them.

python -m tests.family_table        # writes the table into the page; `make docs` does too
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from speech.families import FAMILIES, ModelFamily

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "model-families.md"
START, END = "<!-- written by `make docs` -->\n", "<!-- to here -->\n"
CHECKS = {
    "engine": "learner = engine, before and after a publication",
    "logits": "logits = transformers",
    "audio": "other audio, other log-probs",
    "export": "export loads elsewhere",
    "train": "three steps of `train`",
}
FILES = ("tests/speech/families", "tests/rollout/engine", "tests/end_to_end")
OUT = "FAMILY_TABLE"
"""Environment variable: where the collecting pytest writes what it found."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """As a plug-in of the collecting pytest. A test names its families, or has one among its parameters."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for item in items:
        for marker in item.iter_markers("family_check"):
            check, *named = marker.args
            parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
            families = named or [value for value in parameters if isinstance(value, str) and value in FAMILIES]
            if check not in CHECKS or not families:
                raise ValueError(f"{item.nodeid}: no check of a family")
            found[check] |= dict.fromkeys(families, item.nodeid.partition("::")[0])
    Path(os.environ[OUT]).write_text(json.dumps(found), encoding="utf-8")


def table(folder: Path) -> str:
    """The table in Markdown; a check that is run by nothing is a dash.

    Args:
        folder: for a file of this process.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.family_table",
    ]
    environment = os.environ | {OUT: str(folder / "found.json")}
    everything = ["-m", "slow or not slow", *FILES]
    done = subprocess.run(
        [*command, *everything], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"tests could not be collected:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    lines = [f"| family | {' | '.join(CHECKS.values())} |", "|---|" + "---|" * len(CHECKS)]
    hears = [name for name, family in FAMILIES.items() if issubclass(family, ModelFamily)]
    for name in [*sorted(hears), *sorted(FAMILIES.keys() - set(hears))]:
        cells = [_cell(found.get(check, {}).get(name)) for check in CHECKS]
        if name not in hears:
            cells[list(CHECKS).index("audio")] = "it hears none"
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(file: str | None) -> str:
    return "–" if file is None else f"[{Path(file).stem.removeprefix('test_')}](../{file})"


def parts() -> tuple[str, str, str]:
    """The page before the table, the table, and the page after it."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(START)
    held, end, after = rest.partition(END)
    assert start and end, f"{PAGE} has no place for the table"
    return before + start, held, end + after


if __name__ == "__main__":
    import tempfile

    first, _, last = parts()
    with tempfile.TemporaryDirectory() as temporary:
        PAGE.write_text(first + table(Path(temporary)) + last, encoding="utf-8")
