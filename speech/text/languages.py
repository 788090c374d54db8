"""Languages: the code of one however it is named, the scripts it is written in, whether it is written with spaces."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from speech.text.iso639 import CODES, TO_TWO_LETTERS

_HAN: Final = frozenset({"HAN"})
JAPANESE: Final = frozenset({"HAN", "HIRAGANA", "KATAKANA"})
"""Scripts of Japanese."""

# ISO 639 code → (name that models write in their output, scripts the language is written in).
_LANGUAGES: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "zh": ("chinese", _HAN),
    "yue": ("cantonese", _HAN),
    "ja": ("japanese", JAPANESE),
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
# Codes that were withdrawn, varieties that are scored as one, and codes of countries that are no language's.
_ALIASES: Final = {
    "cmn": "zh", "nb": "no", "nn": "no", "fil": "tl", "prs": "fa", "pes": "fa", "arb": "ar", "iw": "he", "in": "id",
    "ji": "yi", "cn": "zh", "jp": "ja", "cz": "cs", "dk": "da", "gr": "el", "ua": "uk", "vn": "vi", "us": "en",
    "gb": "en",
}  # fmt: skip

CHINESE: Final = frozenset({"zh", "yue", "wuu", "gan", "hsn", "cjy"})
"""Languages that are written as Mandarin is."""
ARABIC_SCRIPT: Final = frozenset({"ar", "fa", "ur", "ps", "sd", "ug", "ckb"})
"""Languages of the Arabic script."""

_UNSPACED: Final = CHINESE | {"ja", "th", "lo", "km", "my", "bo", "dz"}


@lru_cache(maxsize=1024)  # manifests ask for each of a million lines
def language_code(language: str) -> str:
    """The short code of a language given as code, tag or English name: `en-US`, `eng`, `English` → `en`.

    An unknown name comes back lower-cased, so that two spellings of it still compare equal.
    """
    name = language.strip().lower().replace("_", "-")
    code = _BY_NAME.get(name, name.split("-")[0])
    code = TO_TWO_LETTERS.get(code, code)
    return _ALIASES.get(code, code)


def is_language_code(code: str) -> bool:
    """Whether it is a code of ISO 639, of two or three lower-case letters, that names a language."""
    return code in CODES


def is_spaced(language: str) -> bool:
    """Whether the language puts spaces between words, so that a word is its scoring unit."""
    return language_code(language) not in _UNSPACED


def expected_scripts(language: str) -> frozenset[str]:
    """Scripts in which a language is written; empty for a language that is not in the table."""
    entry = _LANGUAGES.get(language_code(language))
    return entry[1] if entry is not None else frozenset()
