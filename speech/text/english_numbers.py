"""English numbers: words to digits by Whisper's grammar, given only what it does not lose.

The grammar of `whisper_normalizer` drops words in places: the second thousand of "thousand thousand", "point" before
"hundred", the sign of "minus five dollars", "hundred" after zero, the 0 of `05`, and the currency of `$1`, which it
writes as "one". A run of number words is therefore cut where it would lose one, and its output is our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from whisper_normalizer.english import EnglishNumberNormalizer

from speech.text.numbers import Number

_DIGITS: Final = re.compile(r"\d*\.?\d+")
_DIGIT_NAMES: Final = "zero one two three four five six seven eight nine".split()
_CENTS: Final = re.compile(r"([€£$])(\d+) (?:and )?¢(\d{1,2})(?!\S)")
_ONLY_CENTS: Final = re.compile(r"(?<!\S)[€£$]0\.(\d{1,2})(?!\S)")
_CURRENCIES: Final = {"dollar": "dollars", "euro": "euros", "pound": "pounds", "cent": "cents"}


class EnglishNumbers:
    """Words of a lower-case text, numbers among them replaced."""

    def __init__(self) -> None:
        grammar = EnglishNumberNormalizer()
        self._grammar = grammar
        self._words = grammar.words
        self._multipliers = {*grammar.multipliers, *grammar.multipliers_suffixed}
        self._counted = {*grammar.zeros, *grammar.ones, *grammar.tens, *grammar.ones_suffixed, *grammar.tens_suffixed}
        units = {str(value): name for name, value in {**grammar.ones, **grammar.tens}.items()}
        tens = {str(t + n): f"{name} {units[str(n)]}" for name, t in grammar.tens.items() for n in range(1, 10)}
        self._read = {"0": _DIGIT_NAMES[0]} | units | tens

    def __call__(self, words: Sequence[str]) -> list[str | Number]:
        """Words that are no numbers stay as they are."""
        result: list[str | Number] = []
        run: list[str] = []
        for place, word in enumerate(words):
            following = words[place + 1] if place + 1 < len(words) else ""
            if word in self._words or _DIGITS.fullmatch(word) or (word == "a" and following in self._multipliers):
                if run and self._parts(run, word):
                    result += self._numbers(run)
                    run = []
                run.append(word)
            else:
                result += self._numbers(run)
                run = []
                result.append(word)
        return result + self._numbers(run)

    def _parts(self, run: Sequence[str], following: str) -> bool:
        """Whether the next word belongs to another number than a run does, or the run's last is no number here."""
        grammar, word = self._grammar, run[-1]
        numeral = following in self._counted or _DIGITS.fullmatch(following) is not None
        if following == "and":
            return word not in grammar.multipliers and word not in grammar.following_prefixers
        if word == "and":  # which the grammar drops after a multiplier
            return len(run) == 1 or (following not in self._counted and (not numeral or run[-2] in grammar.multipliers))
        if word in grammar.preceding_prefixers:
            return not (numeral or following in {*grammar.multipliers, "a", "point", "double", "triple"})
        if following in grammar.preceding_prefixers:
            return True
        if word == "point":
            return following not in grammar.decimals and _DIGITS.fullmatch(following) is None
        if _DIGITS.fullmatch(word):
            if following in self._multipliers:
                return not 0 < float(word) < 1000
            if len(word) == 1 and following in grammar.ones:  # digits that are said one by one: 4 two
                return False
            return following not in {"point", *grammar.following_prefixers, *grammar.suffixers}
        if _DIGITS.fullmatch(following) or following == "a":
            return True
        if word in grammar.zeros:
            return following in self._multipliers
        if word in self._multipliers and following in self._multipliers:
            return word != "hundred" or following.startswith("hundred")
        return False

    def _numbers(self, run: Sequence[str]) -> list[Number]:
        if not run:
            return []
        units = self._units(run)
        if len(units) > 1:  # each number with its own words
            for place in range(1, len(run)):
                if self._units(run[:place]) + self._units(run[place:]) == units:
                    return self._numbers(run[:place]) + self._numbers(run[place:])
        multiplied = not self._multipliers.isdisjoint(run)
        words = tuple(part for word in run for part in self._as_read(word, multiplied))
        read = not any(_DIGITS.fullmatch(word) for word in words)
        return [
            Number(
                units=units,
                words=words if read else (),
                counted=self._counted.issuperset(words),
                written=any(_DIGITS.fullmatch(word) for word in run),
                multiplied=multiplied,
            )
        ]

    def _units(self, run: Sequence[str]) -> tuple[str, ...]:
        signed = len(run) > 1 and run[0] in self._grammar.preceding_prefixers
        readable = [part for word in run[signed:] for part in self._readable(word)]
        text = " ".join(self._grammar.process_words(readable))
        text = _ONLY_CENTS.sub(lambda cents: f"¢{int(cents[1])}", _CENTS.sub(_as_cents, text))
        units = [{"1": "one", "1s": "ones"}.get(unit, unit) for unit in text.split()]
        if signed:  # the grammar would let a currency take the sign's place
            has_digit = any(character.isdigit() for character in units[0])
            units[:1] = [self._grammar.preceding_prefixers[run[0]] + units[0]] if has_digit else [run[0], units[0]]
        return tuple(units)

    def _as_read(self, word: str, multiplied: bool) -> list[str]:
        """The words of a written number up to 99, with a "hundred" after it also of `05` and `0.5`; others stay."""
        if word in self._read or not multiplied or not _DIGITS.fullmatch(word):
            return self._read.get(word, _CURRENCIES.get(word, word)).split()
        return [part for digits in self._readable(word) for part in self._read.get(digits, digits).split()]

    def _readable(self, word: str) -> list[str]:
        """A written number in the form in which the grammar keeps all of its digits."""
        if word == "a":
            return ["one"]
        if not _DIGITS.fullmatch(word):
            return [word]
        whole, point, decimals = word.partition(".")
        names = [_DIGIT_NAMES[int(digit)] for digit in whole] if whole.startswith("0") else [whole] if whole else []
        return [*names, "point", *(_DIGIT_NAMES[int(digit)] for digit in decimals)] if point else names


def _as_cents(match: re.Match[str]) -> str:
    currency, whole, cents = match.groups()
    return f"{currency}{whole}.{int(cents):02d}"
