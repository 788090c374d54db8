"""Two texts side by side: a number that can be read or written in several ways is right in each of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Final

from rapidfuzz.distance import Levenshtein

from speech.text.characters import fold
from speech.text.languages import CHINESE, is_spaced, language_code
from speech.text.normalise import english, normalise
from speech.text.numbers import Number

ELSE: Final = "≠"
"""On a unit that another one only seems to equal; no normalised text holds it."""

_DIGITWISE: Final = str.maketrans("0123456789", "零一二三四五六七八九")
_DIGITS: Final = re.compile(r"(?<![\d.,:/])(\d{1,2}):(\d{2})(?![\d:])|(?<![\d.,:/-])\d{2,}(?![\d.,:/-]*\d)")
_NUMERAL: Final = re.compile(r"\d")
_HALF_OF_DAY: Final = re.compile(r"(\d|\bone|\boclock) ([ap])m\b")
_LETTERS_OF_HALF: Final = re.compile(r"(\d|\bone|\boclock) ([ap]) m\b")
_READ: Final = 8  # numbers of a text that are tried in more than one reading


@lru_cache(maxsize=65536)
def scored_pair(reference: str, hypothesis: str, language: str) -> tuple[str, str]:
    """Both texts in scored form (`normalise`), in the readings of their numbers that agree.

    - Spaced languages: `555 1212` and `5551212` are one number; the hypothesis is grouped as the reference is.
    - English: a number in words is right for one in digits, but two that were said in other words differ, even if
      their digits do not ("one hundred twenty", "one twenty"). Digits and tens alone are compared as digits.
    - Chinese: a written number may be read as a number or digit by digit, a time of day with 分 or without.
    """
    code = language_code(language)
    if code in CHINESE:
        first = _closest(reference, normalise(hypothesis, code), code)
        return first, _closest(hypothesis, first, code)
    first, second = normalise(reference, code), normalise(hypothesis, code)
    if code == "en":
        second = " ".join(_as_said(reference, hypothesis))
        joined, apart = _HALF_OF_DAY.search(first), _LETTERS_OF_HALF.search(first)
        if joined and not apart:
            second = _LETTERS_OF_HALF.sub(r"\1 \2m", second)
        elif apart and not joined:
            second = _HALF_OF_DAY.sub(r"\1 \2 m", second)
    # A reference of ones alone has no digit: "1 1" is "one one", and what was said as "one one" is "11".
    if is_spaced(code) and first != second and _NUMERAL.search(f"{first} {second}"):
        said, heard = (_multiplied(reference), _multiplied(hypothesis)) if code == "en" else ({}, {})
        second = " ".join(_grouped(first.split(), second.split(), said, heard))
    return first, second


def _as_said(reference: str, hypothesis: str) -> list[str]:
    """Units of the hypothesis; those of a number that the reference says in other words are marked."""
    numbers = [item for item in english(reference) if isinstance(item, Number)]
    heard = Counter(item.units for item in english(hypothesis) if isinstance(item, Number))
    said: dict[tuple[str, ...], list[Number]] = defaultdict(list)
    for number in numbers:
        said[number.units].append(number)
    units: list[str] = []
    for item in english(hypothesis):
        if isinstance(item, str):
            units.append(item)
            continue
        others = said[item.units]
        if len(others) == heard[item.units]:  # each has its counterpart; else there is an error already
            others = [others.pop(0)]
            heard[item.units] -= 1
        marked = bool(others) and not any(_agree(item, other) for other in others)
        units += [item.units[0] + ELSE, *item.units[1:]] if marked else item.units
    return units


def _agree(one: Number, other: Number) -> bool:
    if one.words == other.words or not (one.words and other.words) or (one.counted and other.counted):
        return True
    # "1 million" is what "a million" is written as.
    return (one.written or other.written) and _without_article(one) == _without_article(other)


def _without_article(number: Number) -> tuple[str, ...]:
    return tuple("one" if word == "a" else word for word in number.words)


def _multiplied(text: str) -> dict[str, bool]:
    """Units that were said with a hundred, a thousand or the like, and whether in words alone.

    Their digits do not follow one another: a "hundred" left out would be free otherwise ("zero five hundred twenty",
    "zero five twenty").
    """
    numbers = (item for item in english(text) if isinstance(item, Number))
    return {unit: not number.written for number in numbers if number.multiplied for unit in number.units}


def _grouped(
    reference: Sequence[str], hypothesis: Sequence[str], said: Mapping[str, bool], heard: Mapping[str, bool]
) -> Iterator[str]:
    """The hypothesis, digits that are cut into other units than in the reference put into the reference's.

    Args:
        said, heard: `_multiplied` of each. Written they may be cut into thousands, and not otherwise.
    """
    runs = [run for numeric, run in _runs(reference, said) if numeric]
    wanted = {_joined(run): run for run in runs}
    in_thousands = {_thousands(unit): [unit] for unit, in_words in said.items() if in_words}
    for numeric, run in _runs(hypothesis, heard):
        if numeric:
            yield from in_thousands.get(tuple(run)) or wanted.get(_joined(run), run)
        else:
            for unit in run:
                cut = list(_thousands(unit)) if heard.get(unit) else [unit]
                yield from cut if cut in runs else [unit]


def _thousands(unit: str) -> tuple[str, ...]:
    """`10000` as it is written with a space, `10 000`."""
    first = (len(unit) - 1) % 3 + 1
    return (unit[:first], *(unit[place : place + 3] for place in range(first, len(unit), 3)))


def _runs(units: Sequence[str], whole: Container[str]) -> Iterator[tuple[bool, list[str]]]:
    """Longest sequences of units that are digits, and what is between them.

    Args:
        whole: digits that are not to be cut.
    """
    for numeric, run in groupby(units, key=lambda unit: unit not in whole and (unit == "one" or unit.isdecimal())):
        yield numeric, list(run)


def _joined(run: Sequence[str]) -> str:
    return "".join("1" if unit == "one" else unit for unit in run)


def _closest(text: str, other: str, code: str) -> str:
    """A Chinese text in scored form, in the reading of its numbers that is nearest to another text in scored form."""
    closest, text = normalise(text, code), fold(text, code)
    for number in list(_DIGITS.finditer(text))[: -_READ - 1 : -1]:  # from the end: places before it stay true
        for reading in _readings(number, other):
            if reading in closest:
                continue
            tried = text[: number.start()] + reading + text[number.end() :]
            spoken = normalise(tried, code)
            if Levenshtein.distance(spoken, other) < Levenshtein.distance(closest, other):
                closest, text = spoken, tried
                break
    return closest


def _readings(number: re.Match[str], other: str) -> list[str]:
    """How else than the grammar does it a written number can be read. The grammar takes milliseconds, so only readings
    that the other text may hold are given."""
    hour, minute = number.groups()
    if hour is None:
        digitwise = number[0].translate(_DIGITWISE)
        heard = any(digitwise[place : place + 2] in other for place in range(len(digitwise) - 1))
        return [digitwise] if heard else []
    halves = [f"{hour}点半"] if minute == "30" and "点半" in other else []
    return [*halves, f"{hour}点{minute}"] if "点" in other and "分" not in other else halves
