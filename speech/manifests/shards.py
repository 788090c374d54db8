"""A manifest of several files: a folder of them, or a pattern with braces (`shard-{000..003}.tar`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(path: Path) -> bool:
    """Whether a path stands for several files, by braces in its last part."""
    return bool(_BRACES.search(path.name)) and not path.exists()


def shards(path: Path, suffix: str) -> list[Path]:
    """The files that a path stands for, in order: itself, those of a folder by name, or those of a pattern."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix == suffix and not file.name.startswith("."))
    return named(path)


def named(path: Path) -> list[Path]:
    """The files that a pattern names, whether they are there or not; any other path names itself."""
    return [path.with_name(name) for name in _expanded(path.name)] if is_pattern(path) else [path]


def _expanded(pattern: str) -> Iterator[str]:
    """`{000..003}` is a range, its numbers as wide as the first; `{a,b}` a list."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    ends = _RANGE.fullmatch(match[1])
    if ends is None:
        choices = match[1].split(",")
    else:
        choices = [str(number).zfill(len(ends[1])) for number in range(int(ends[1]), int(ends[2]) + 1)]
    for choice in choices:
        yield from _expanded(pattern[: match.start()] + choice + pattern[match.end() :])
