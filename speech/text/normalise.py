"""Normalisation and scoring units.

One function, `normalise`, is applied to the reference and to the hypothesis alike, so that a written form (case,
punctuation, "twenty one" against "21") never counts as an error. What a number can be read as is a matter of both
texts (`speech.text.readings`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from speech.text.basic import basic_rules
from speech.text.characters import compose
from speech.text.languages import CHINESE, is_spaced, language_code
from speech.text.numbers import Number
from speech.text.scripts import guess_language

# The rules of English and Chinese are imported on first use: wetext reads 30 grammars at import (0.5 s), which a run on
# English audio never needs, and every process of a run imports this module.
if TYPE_CHECKING:
    from speech.text.chinese import ChineseRules
    from speech.text.english import EnglishRules

_RULES: Final = 4  # raise when the choices of this package change what a text normalises to

NORMALISER_VERSION: Final = (
    f"whisper_normalizer {version('whisper_normalizer')}, wetext {version('wetext')}, "
    f"unicode {unicodedata.unidata_version}, rules {_RULES}"
)
"""Everything a word error rate depends on besides the two texts; logged with every evaluation."""


@lru_cache(maxsize=65536)
def normalise(text: str, language: str | None) -> str:
    """Text in its scored form.

    English goes through Whisper's rules (contractions, spelling, numbers to digits, fillers and bracketed text
    dropped), Chinese through wetext (numbers to characters, traditional to simplified) with punctuation and spaces
    removed, other languages through Whisper's basic rules with combining marks kept.

    Args:
        text: as written by the user or decoded from the model; any string.
        language: code, tag or English name; None guesses it from the script (`guess_language`). To compare two
            texts pass the same language for both.

    Returns:
        The normalised text, without leading, trailing or double spaces; without any space in unspaced languages.
    """
    code = guess_language(text) if language is None else language_code(language)
    if code is None:
        return ""
    if code == "en":
        return " ".join(unit for item in english(text) for unit in ([item] if isinstance(item, str) else item.units))
    normalised = _chinese()(text) if code in CHINESE else basic_rules(text, code)
    # A mark whose bearer was a dropped space or sign has a new one now.
    return compose((" " if is_spaced(code) else "").join(normalised.split()))


@lru_cache(maxsize=65536)
def english(text: str) -> tuple[str | Number, ...]:
    """The units of an English text, numbers with the words that they were said in."""
    return tuple(_english()(text))


def units(text: str, language: str | None) -> list[str]:
    """Scoring units of a text after normalisation: words, or characters in languages written without spaces."""
    code = guess_language(text) if language is None else language
    if code is None:
        return []
    normalised = normalise(text, code)
    return normalised.split() if is_spaced(code) else list(normalised)


def loose_units(text: str, language: str | None) -> list[str]:
    """Scoring units with every number split into its digits, and symbols dropped.

    English normalisation writes "one two two" as the single word `122`, which hides a repeated digit and a spoken
    keyword "two". Loops and keywords are therefore searched in this form; errors are counted in `units`.
    """
    parts: list[str] = []
    for unit in units(text, language):
        has_digit = any(character.isdigit() for character in unit)
        parts.extend(re.findall(r"\d|[^\W\d_]+", unit) if has_digit else [unit])
    return parts


def whisper_units(text: str) -> list[str]:
    """Words of an English text by Whisper's rules as they were published, for comparison with others' figures."""
    return _whisper()(text).split()


def seed_tts_units(text: str, language: str) -> list[str]:
    """Units of a text as seed-tts-eval compares them (Anastassiou et al. 2024, arXiv 2406.02430), for comparison with
    others' figures: lower case without punctuation and ASCII symbols, numbers as they are written; words, or
    characters in languages written without spaces."""
    words = "".join(c for c in text.lower() if c == "'" or not _seed_tts_drops(c)).split()
    return words if is_spaced(language) else list("".join(words))


def _seed_tts_drops(character: str) -> bool:
    kind = unicodedata.category(character)[0]
    return kind == "P" or (kind == "S" and character.isascii())


@lru_cache(maxsize=1)
def _whisper() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    rules: Callable[[str], str] = EnglishTextNormalizer()
    return rules


@lru_cache(maxsize=1)
def _english() -> EnglishRules:
    from speech.text.english import EnglishRules

    return EnglishRules()


@lru_cache(maxsize=1)
def _chinese() -> ChineseRules:
    from speech.text.chinese import ChineseRules

    return ChineseRules()
