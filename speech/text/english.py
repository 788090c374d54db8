"""English as it is scored: Whisper's rules for contractions and spelling, with symbols and numbers read out."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from whisper_normalizer.basic import ADDITIONAL_DIACRITICS
from whisper_normalizer.english import EnglishTextNormalizer

from speech.text.characters import Spaced, fold, lower
from speech.text.english_numbers import EnglishNumbers
from speech.text.numbers import Number

_PLAIN: Final = re.compile(r"[a-z ]*")
_ENCLOSED: Final = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")

_NUMBER: Final = r"\d+(?:\.\d+)?"
_NAMES: Final = {"$": "dollar", "£": "pound", "€": "euro", "¢": "cent", "¥": "yen", "₹": "rupee", "₩": "won"}
_SCALES: Final = {"k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_SCALE: Final = "hundred|thousand|million|billion|trillion"
_CURRENCY_BEFORE: Final = re.compile(rf"([$£€¢¥₹₩])\s*({_NUMBER})(?:\s*({_SCALE})\b|({'|'.join(_SCALES)})\b)?")
_CURRENCY_AFTER: Final = re.compile(rf"({_NUMBER})(\s+(?:{_SCALE}))?\s*([$£€¢¥₹₩])")
_DEGREES: Final = re.compile(rf"({_NUMBER})\s*°\s*(?:([cf])\b)?")
_OTHERS: Final = (
    (re.compile(r"(\d),(?=\d)"), r"\1"),
    (re.compile(r"(?<!\S)-(?=[$£€¢¥₹₩]?\s*\.?\d)"), "minus "),
    (re.compile(r"(?<!\S)\+(?=[$£€¢¥₹₩]?\s*\.?\d)"), "plus "),
    (re.compile(r"\b(\d{1,2}):00(?::00)?(?=\s*[ap]\.?\s?m\b)"), r"\1"),
    (re.compile(r"\b(\d{1,2}):00\b(?!:)"), r"\1 o'clock"),
    (re.compile(r"(\d)\s*%"), r"\1 percent "),
    (re.compile(r"#(?=\d)"), "number "),
    (re.compile(r"(?<=\d)\s*\+\s*(?=\d)"), " plus "),
    (re.compile(r"(?<=\d)\s*=\s*(?=\d)"), " equals "),
    (re.compile(r"(?<=\d)\s*[×*]\s*(?=\d)"), " times "),
    (re.compile(r"(?<=\d)\s*÷\s*(?=\d)"), " divided by "),
    (re.compile(r"(\d) 1/2(?![\d/])"), r"\1.5"),
    (re.compile(r"(?<![\d/])1/2(?![\d/])"), "one half"),
    (re.compile(r"(?<![\d/])1/4(?![\d/])"), "one quarter"),
    (re.compile(r"(?<![\d/])3/4(?![\d/])"), "three quarters"),
    (re.compile(r"&"), " and "),
)
_CLOCK: Final = re.compile(r"\bo['\s]\s?clock\b")
_SYMBOLS: Final = Spaced("MPS", keep=".")
_STRAY_POINT: Final = re.compile(r"\.(?!\d)")


class EnglishRules:
    """A text → its units, with the numbers among them."""

    def __init__(self) -> None:
        whisper = EnglishTextNormalizer()
        self._whisper = whisper
        self._numbers = EnglishNumbers()
        self._fillers = re.compile(whisper.ignore_patterns)
        self._replacers = [(re.compile(pattern), text) for pattern, text in whisper.replacers.items()]
        # A pattern without an apostrophe is one word; most texts hold neither.
        words = [p.removeprefix(r"\b").removesuffix(r"\b") for p in whisper.replacers if "'" not in p]
        self._replaced = re.compile(rf"'|\b(?:{'|'.join(words)})\b")

    def __call__(self, text: str) -> list[str | Number]:
        text = lower(fold(text, "en"), "en")
        plain = _PLAIN.fullmatch(text) is not None
        if not plain:
            text = _read_symbols(_ENCLOSED.sub("", _without_diacritics(text)))
        text = self._fillers.sub("", text)
        text = text.replace("per cent", "percent")
        if "clock" in text:
            text = _CLOCK.sub("oclock", text)
        if self._replaced.search(text):
            text = re.sub(r"\s+'", "'", text)
            for pattern, replacement in self._replacers:
                text = pattern.sub(replacement, text)
        if not plain:
            text = _without_symbols(text)
        if "half" in text or not plain:
            text = self._whisper.standardize_numbers.preprocess(text)
        spelling = self._whisper.standardize_spellings.mapping
        found = self._numbers([word for word in text.split() if any(c.isalnum() for c in word)])
        return [item if isinstance(item, Number) else spelling.get(item, item) for item in found]


def _read_symbols(text: str) -> str:
    """Symbols beside numbers as words."""
    for pattern, replacement in _OTHERS:
        text = pattern.sub(replacement, text)
    text = _CURRENCY_BEFORE.sub(lambda m: _amount(m[2], m[3] or _SCALES.get(m[4] or "", ""), m[1]), text)
    text = _CURRENCY_AFTER.sub(lambda m: _amount(m[1], (m[2] or "").strip(), m[3]), text)
    return _DEGREES.sub(_temperature, text)


def _amount(number: str, scale: str, symbol: str) -> str:
    name = _NAMES[symbol]
    if name not in ("yen", "won") and (number != "1" or scale):
        name += "s"
    whole, _, decimals = number.partition(".")
    return f" {whole if decimals in ('0', '00') else number} {scale} {name} "


def _temperature(match: re.Match[str]) -> str:
    scale = {"c": "celsius", "f": "fahrenheit"}.get(match[2] or "", "")
    return f"{match[1]} degree{'' if match[1] == '1' else 's'} {scale} "


@lru_cache(maxsize=4096)
def _bare(character: str) -> str:
    decomposed = unicodedata.normalize("NFKD", ADDITIONAL_DIACRITICS.get(character, character))
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def _without_diacritics(text: str) -> str:
    return text if text.isascii() else "".join(map(_bare, text))


def _without_symbols(text: str) -> str:
    """Symbols and punctuation as spaces, but for the point before a digit."""
    return _STRAY_POINT.sub(" ", text).translate(_SYMBOLS)
