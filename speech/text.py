"""Text as it is scored: normalisation, scoring units, scripts.

One function, `normalise`, is applied to the reference and to the hypothesis alike, so that a written form (case,
punctuation, "twenty one" against "21") never counts as an error. It is built on kept libraries; what is ours is
only the choice per language and the counting of scripts. No model, no download, no clock: same text, same result.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import Final

_RULES: Final = 1  # raise when the choices of this file change what a text normalises to

NORMALISER_VERSION: Final = (
    f"whisper_normalizer {version('whisper_normalizer')}, wetext {version('wetext')}, "
    f"unicode {unicodedata.unidata_version}, rules {_RULES}"
)
"""Everything a word error rate depends on besides the two texts; logged with every evaluation."""

_HAN: Final = frozenset({"HAN"})
_JAPANESE: Final = frozenset({"HAN", "HIRAGANA", "KATAKANA"})

# ISO 639 code → (name that models write in their output, scripts the language is written in).
_LANGUAGES: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "zh": ("chinese", _HAN),
    "yue": ("cantonese", _HAN),
    "ja": ("japanese", _JAPANESE),
    "ko": ("korean", frozenset({"HANGUL"})),
    "th": ("thai", frozenset({"THAI"})),
    "lo": ("lao", frozenset({"LAO"})),
    "km": ("khmer", frozenset({"KHMER"})),
    "my": ("burmese", frozenset({"MYANMAR"})),
    "ar": ("arabic", frozenset({"ARABIC"})),
    "fa": ("persian", frozenset({"ARABIC"})),
    "ur": ("urdu", frozenset({"ARABIC"})),
    "he": ("hebrew", frozenset({"HEBREW"})),
    "hi": ("hindi", frozenset({"DEVANAGARI"})),
    "bn": ("bengali", frozenset({"BENGALI"})),
    "ta": ("tamil", frozenset({"TAMIL"})),
    "te": ("telugu", frozenset({"TELUGU"})),
    "el": ("greek", frozenset({"GREEK"})),
    "ka": ("georgian", frozenset({"GEORGIAN"})),
    "hy": ("armenian", frozenset({"ARMENIAN"})),
    **{
        code: (name, frozenset({"CYRILLIC"}))
        for code, name in {
            "ru": "russian", "uk": "ukrainian", "bg": "bulgarian", "mk": "macedonian", "be": "belarusian",
        }.items()
    },
    **{
        code: (name, frozenset({"LATIN"}))
        for code, name in {
            "en": "english", "de": "german", "fr": "french", "es": "spanish", "it": "italian", "pt": "portuguese",
            "nl": "dutch", "sv": "swedish", "da": "danish", "no": "norwegian", "fi": "finnish", "pl": "polish",
            "cs": "czech", "sk": "slovak", "hu": "hungarian", "ro": "romanian", "tr": "turkish", "id": "indonesian",
            "ms": "malay", "vi": "vietnamese", "tl": "filipino", "ca": "catalan", "hr": "croatian", "et": "estonian",
            "lt": "lithuanian", "lv": "latvian", "sl": "slovenian", "sw": "swahili", "eo": "esperanto",
        }.items()
    },
}  # fmt: skip
_BY_NAME: Final = {name: code for code, (name, _) in _LANGUAGES.items()} | {"mandarin": "zh"}
_ALIASES: Final = {"cmn": "zh", "cn": "zh", "iw": "he", "nb": "no", "nn": "no", "fil": "tl"}

_CHINESE: Final = frozenset({"zh", "yue"})
_UNSPACED: Final = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my", "bo", "wuu"})
_OPTIONAL_MARKS: Final = frozenset({"ar", "fa", "ur", "he"})  # vowel signs that most writers leave out
_SCRIPT_LANGUAGE: Final = {
    "HAN": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th", "LAO": "lo", "KHMER": "km",
    "MYANMAR": "my", "CYRILLIC": "ru", "ARABIC": "ar", "HEBREW": "he", "DEVANAGARI": "hi", "GREEK": "el",
}  # fmt: skip

# A Han character carries about as much as three Latin letters: without the weight a sentence such as 打开WiFi
# would count as Latin.
_WEIGHT: Final = {"HAN": 3, "HIRAGANA": 2, "KATAKANA": 2, "HANGUL": 2}
_FIRST_WORD_TO_SCRIPT: Final = {"CJK": "HAN", "IDEOGRAPHIC": "HAN"}


def language_code(language: str) -> str:
    """The short code of a language given as code, tag or English name: `en-US`, `English` → `en`.

    An unknown name comes back lower-cased, so that two spellings of it still compare equal.
    """
    name = language.strip().lower().replace("_", "-")
    code = _BY_NAME.get(name, name.split("-")[0])
    return _ALIASES.get(code, code)


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


def is_spaced(language: str) -> bool:
    """Whether the language puts spaces between words, so that a word is its scoring unit."""
    return language_code(language) not in _UNSPACED


@lru_cache(maxsize=65536)
def normalise(text: str, language: str | None) -> str:
    """Text in its scored form.

    English goes through Whisper's English rules (contractions, spelling, numbers to digits, fillers and bracketed
    text dropped), Chinese through wetext (numbers to characters, traditional to simplified) with punctuation and
    spaces removed, other languages through Whisper's basic rules with combining marks kept.

    Args:
        text: as written by the user or decoded from the model.
        language: code, tag or English name; None guesses it from the script (`guess_language`). To compare two
            texts pass the same language for both.

    Returns:
        The normalised text, without leading, trailing or double spaces; without any space in unspaced languages.
    """
    code = guess_language(text) if language is None else language_code(language)
    if code is None:
        return ""
    normaliser = _chinese() if code in _CHINESE else _english() if code == "en" else _basic(code in _OPTIONAL_MARKS)
    return ("" if code in _UNSPACED else " ").join(normaliser(text).split())


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


def expected_scripts(language: str) -> frozenset[str]:
    """Scripts in which a language is written; empty for a language that is not in the table."""
    entry = _LANGUAGES.get(language_code(language))
    return entry[1] if entry is not None else frozenset()


def allowed_scripts(reference: str, language: str | None) -> frozenset[str]:
    """Scripts that a transcript of this utterance may use: its language's, or else its reference's main script."""
    expected = expected_scripts(language) if language is not None else frozenset()
    if expected:
        return expected
    dominant = dominant_script(reference)
    if dominant is None:
        return frozenset()
    return _JAPANESE if guess_language(reference) == "ja" else frozenset({dominant})


@lru_cache(maxsize=8192)
def _script(character: str) -> str | None:
    if not unicodedata.category(character).startswith("L"):
        return None
    first = re.split(r"[ -]", unicodedata.name(character, "UNKNOWN"), maxsplit=1)[0]
    return _FIRST_WORD_TO_SCRIPT.get(first, first)


# The libraries are imported on first use: wetext reads 30 grammars at import (0.5 s), which a run on English audio
# never needs, and every process of a run imports this module.


@lru_cache(maxsize=1)
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper = EnglishTextNormalizer()

    def rules(text: str) -> str:
        # Whisper's rules keep . $ % for numbers, and leave them behind at the end of a text or after an ellipsis.
        words = (word.rstrip(".") for word in whisper(unicodedata.normalize("NFKC", text)).split())
        return " ".join(word for word in words if any(character.isalnum() for character in word))

    return rules


@lru_cache(maxsize=2)
def _basic(drop_marks: bool) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    whisper: Callable[[str], str] = BasicTextNormalizer(preserve_marks=True)
    if not drop_marks:
        return whisper
    # Whisper's own dropping of marks puts a space in the place of each, which cuts a vocalised word to pieces.

    def rules(text: str) -> str:
        return whisper("".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Mn"))

    return rules


@lru_cache(maxsize=1)
def _chinese() -> Callable[[str], str]:
    from wetext import Normalizer

    grammar = Normalizer(lang="zh", operator="tn", traditional_to_simple=True)

    def rules(text: str) -> str:
        spoken: str = grammar.normalize(unicodedata.normalize("NFKC", text))
        return "".join(character for character in spoken.lower() if unicodedata.category(character)[0] in "LNM")

    return rules
