"""A number as it is scored and as it was said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is scored, and as it was said.

    Attributes:
        units: what it is scored as, usually one unit.
        words: in the order of the text; a written number up to 99 as it is read. Empty where a larger one is written,
            which can be read in several ways.
        counted: all words are digits and tens, which are compared by their digits alone ("six twenty", "six two zero").
        written: a digit stood in the text.
        multiplied: a "hundred", a "thousand" or the like was said, so that its digits are no digits one after another.
    """

    units: tuple[str, ...]
    words: tuple[str, ...]
    counted: bool
    written: bool
    multiplied: bool
