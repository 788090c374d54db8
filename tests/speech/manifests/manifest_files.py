"""Writing manifests and reading back what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speech.errors import InputError
from speech.manifests import load_manifest


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def problems_of(path: Path, **options: object) -> list[str]:
    """Problems of a manifest as `line: key: message`, the file left out."""
    with pytest.raises(InputError) as caught:
        load_manifest(path, **options)
    return [str(problem).removeprefix(f"{problem.file}:").strip() for problem in caught.value.problems]
