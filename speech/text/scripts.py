"""Scripts: those of a text, those of a language, and the language that a script suggests."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Final

from speech.text.languages import JAPANESE, expected_scripts, is_spaced

_SCRIPT_LANGUAGE: Final = {
    "HAN": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th", "LAO": "lo", "KHMER": "km",
    "MYANMAR": "my", "CYRILLIC": "ru", "ARABIC": "ar", "HEBREW": "he", "DEVANAGARI": "hi", "GREEK": "el",
}  # fmt: skip

# A Han character carries about as much as three Latin letters: without the weight a sentence such as 打开WiFi
# would count as Latin.
_WEIGHT: Final = {"HAN": 3, "HIRAGANA": 2, "KATAKANA": 2, "HANGUL": 2}
_FIRST_WORD_TO_SCRIPT: Final = {"CJK": "HAN", "IDEOGRAPHIC": "HAN"}


def guess_language(text: str) -> str | None:
    """A language for text that came without one, by its script alone; None when it has no letters and no digits.

    Latin script is read as English: script cannot tell English from Spanish, so a manifest in another language of
    that script should name it (the English rules would drop its diacritics).
    """
    shares = script_shares(text)
    if not shares:
        return "en" if any(character.isalnum() for character in text) else None
    if shares.get("HIRAGANA", 0.0) + shares.get("KATAKANA", 0.0) > 0.1:
        return "ja"
    return _SCRIPT_LANGUAGE.get(max(shares, key=shares.__getitem__), "en")


def join_texts(first: str, second: str) -> str:
    """Two texts as one, with a space between them in languages that put one between words."""
    first, second = first.strip(), second.strip()
    spaced = is_spaced(guess_language(first) or "en")
    return f"{first} {second}" if first and second and spaced else first + second


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters of a text, by weight (see `_WEIGHT`); empty without letters.

    Scripts are named by the first word of their Unicode character names (`LATIN`, `CYRILLIC`), Han being `HAN`.
    """
    weights: Counter[str] = Counter()
    for character in unicodedata.normalize("NFKC", text):
        script = _script(character)
        if script is not None:
            weights[script] += _WEIGHT.get(script, 1)
    total = sum(weights.values())
    return {script: weight / total for script, weight in weights.items()}


def dominant_script(text: str) -> str | None:
    """The script with the largest share (the first in alphabet order on a tie); None without letters."""
    shares = script_shares(text)
    return min(shares, key=lambda script: (-shares[script], script)) if shares else None


def allowed_scripts(reference: str, language: str | None) -> frozenset[str]:
    """Scripts that a transcript of this utterance may use: its language's, or else its reference's main script."""
    expected = expected_scripts(language) if language is not None else frozenset()
    if expected:
        return expected
    dominant = dominant_script(reference)
    if dominant is None:
        return frozenset()
    return JAPANESE if guess_language(reference) == "ja" else frozenset({dominant})


@lru_cache(maxsize=8192)
def _script(character: str) -> str | None:
    if not unicodedata.category(character).startswith("L"):
        return None
    first = re.split(r"[ -]", unicodedata.name(character, "UNKNOWN"), maxsplit=1)[0]
    return _FIRST_WORD_TO_SCRIPT.get(first, first)
