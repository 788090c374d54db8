"""Characters that look or sound the same become one: what every language's rules start from."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from speech.text.languages import ARABIC_SCRIPT

# Format characters, surrogates, and what Unicode calls default ignorable. Not control characters: nobody writes them,
# and a model that samples one has made an error.
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160"
    "\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_DOTTED_I: Final = re.compile("i\u0307+")
_SAME: Final = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bb\u02bc\u02b9\u02c8\u055a\u2032\u0374`\u1fef\u00b4\u1ffd\uff07\uff40", "'")
    | dict.fromkeys("\u2010\u2011\u2212\ufe63\uff0d", "-")
    | dict.fromkeys("\u2122\u2120\u0640", "")  # ™ and ℠, which compatibility would spell out; tatweel
    | {"\u2044": "/", "\u2215": "/", "\u066a": "%", "\u066b": ".", "\u066c": ","}
)


class _Folded(dict[int, str | int | None]):
    """What `str.translate` puts in the place of a character, found when it is first met."""

    def __missing__(self, point: int) -> str | int | None:
        character = chr(point)
        found: str | int | None = point
        if point in _SAME:
            found = _SAME[point]
        elif _INVISIBLE.match(character):
            found = None
        elif unicodedata.decomposition(character).startswith("<fraction>"):
            found = " " + unicodedata.normalize("NFKC", character)  # 2½ is 2 1/2, not 21/2
        elif point > 127 and character.isdecimal():
            found = str(unicodedata.decimal(character))
        self[point] = found
        return found


class Spaced(dict[int, int]):
    """For `str.translate`: a space for each character of the Unicode categories that begin with one of some letters."""

    def __init__(self, categories: str, keep: str = "") -> None:
        super().__init__((ord(character), ord(character)) for character in keep)
        self._categories = categories

    def __missing__(self, point: int) -> int:
        self[point] = 32 if unicodedata.category(chr(point))[0] in self._categories else point
        return self[point]


_FOLDED: Final = _Folded()
_TO_ARABIC: Final = str.maketrans("\u06a9\u06cc\u06d2\u06c1\u06be", "\u0643\u064a\u064a\u0647\u0647")
_TO_PERSIAN: Final = str.maketrans("\u0643\u064a\u0649\u06c1", "\u06a9\u06cc\u06cc\u0647")
_TO_URDU: Final = str.maketrans("\u0643\u064a\u0649\u0647", "\u06a9\u06cc\u06cc\u06c1")
_LETTERS: Final = {"ar": _TO_ARABIC, "fa": _TO_PERSIAN, "ur": _TO_URDU, "ps": _TO_PERSIAN, "ckb": _TO_PERSIAN}
_DOTTED: Final = frozenset({"tr", "az", "crh", "gag"})  # i and ı are two letters, each with its own capital
_OPTIONAL_MARKS: Final = ARABIC_SCRIPT | {"he", "yi"}  # vowel signs that most writers leave out


def fold(text: str, code: str) -> str:
    """NFKC without invisible characters, with one form of apostrophe, hyphen, fraction bar, digit and of the Arabic
    letters that are one letter in the language. Case stays.

    Args:
        code: as `language_code` gives it.
    """
    folded = text.translate(_FOLDED)
    if folded.isascii():
        return folded
    # Once more: compatibility forms of what was translated, and letters that stood apart from their marks.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded).translate(_FOLDED))
    if code in _LETTERS:
        folded = folded.translate(_LETTERS[code])
    if code in _OPTIONAL_MARKS:
        folded = "".join(c for c in folded if unicodedata.category(c) != "Mn")
    return folded


def lower(text: str, code: str) -> str:
    """Lower case as the language has it: Turkish I is ı, and Greek has one sigma."""
    if code in _DOTTED:
        text = text.replace("İ", "i").replace("I", "ı")
    lowered = text.lower()
    return lowered if lowered.isascii() else compose(lowered.replace("ς", "σ"))


def compose(text: str) -> str:
    """Lower-case text with each mark on the letter before it, and no second dot on an i."""
    return unicodedata.normalize("NFKC", _DOTTED_I.sub("i", text))
