"""Errors that a user can act on. The command line prints their message alone, without a traceback."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any


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


def utf8_complaint(text: str) -> str | None:
    """Why a text cannot be written as UTF-8, or None. JSON can say half of a UTF-16 pair, and so can file names."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half of a UTF-16 pair (U+{ord(text[error.start]):04X}): it cannot be written as UTF-8"
    return None


class PhaseTimeoutError(TimeoutError):
    """A phase did not end in time. The one time-out of this project, whoever waited and in whatever process.

    Attributes:
        phase: its name.
        seconds: its budget, or the time it took where it had none.
        detail: what was known when the time was up, such as the state of those that were waited for; may be empty.
    """

    def __init__(self, phase: str, seconds: float, detail: str = "") -> None:
        # One argument: OSError, whose subclass TimeoutError is, would take a second one for the text of an errno.
        super().__init__(f"phase `{phase}` did not end within {round(seconds, 1):g} s" + (detail and f": {detail}"))
        self.phase, self.seconds, self.detail = phase, seconds, detail

    def __reduce__(self) -> tuple[type[PhaseTimeoutError], tuple[str, float, str], dict[str, Any]]:
        # Exceptions pickle by their message alone; the state keeps the notes.
        return type(self), (self.phase, self.seconds, self.detail), self.__dict__


def first_of(names: Iterable[str], most: int) -> str:
    """The first of some names for a message, with a mark where there are more."""
    shown = list(islice(names, most + 1))
    return ", ".join(shown[:most]) + (", …" if len(shown) > most else "")


def last_line(error: BaseException) -> str:
    """What a multi-line error of Ray's comes down to, without the advice that follows."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[-1], 200, placeholder=" …") if lines else type(error).__name__
