"""Errors that a user can act on. The command line prints their message alone, without a traceback."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class UserError(Exception):
    """Something the user can fix: a wrong file, key or value. Exit code 2."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect of an input file.

    Attributes:
        file: path of the file as the user wrote it.
        line: 1-based line number, or None when the file as a whole is at fault.
        key: the offending key or column, or None.
        message: what is wrong and, where known, what would be right.
    """

    file: str
    line: int | None
    key: str | None
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.message}" if self.key is None else f"{where}: {self.key}: {self.message}"


class InputError(UserError):
    """Bad input data; carries *all* problems found, not only the first."""

    def __init__(self, summary: str, problems: Sequence[Problem], shown: int = 50) -> None:
        self.problems = tuple(problems)
        lines = [f"  {problem}" for problem in self.problems[:shown]]
        if len(self.problems) > shown:
            lines.append(f"  … and {len(self.problems) - shown} more")
        super().__init__("\n".join([summary, *lines]))
        self._arguments = (summary, self.problems, shown)

    def __reduce__(self) -> tuple[type[InputError], tuple[str, Sequence[Problem], int]]:
        # Exceptions pickle by their message alone; this one crosses from an actor to the driver whole.
        return InputError, self._arguments


def did_you_mean(word: object, known: Iterable[object], cutoff: float = 0.5) -> str:
    """`; did you mean 'x'?` with the known word most like this one; empty when none is close."""
    close = difflib.get_close_matches(str(word), [str(item) for item in known], n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def last_line(error: BaseException) -> str:
    """What a multi-line error of Ray's comes down to, without the advice that follows."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[-1], 200, placeholder=" …") if lines else type(error).__name__
