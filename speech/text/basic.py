"""All other languages as they are scored: Whisper's basic rules, with marks, and with the symbols beside numbers."""

from __future__ import annotations

import re
from typing import Final

from speech.text.characters import PUNCTUATION, fold, lower
from speech.text.languages import is_spaced

_ENCLOSED: Final = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")
_BESIDE: Final = r"(?<=\d)\s*([%$€£¥₩₹°])|([%$€£¥₩₹])(?=\s*\d)"
_BESIDE_NUMBER: Final = re.compile(_BESIDE + r"|(?<!\S)([-+])(?=\d)")
_BESIDE_NUMBER_UNSPACED: Final = re.compile(_BESIDE + r"|(?<![0-9a-z])([-+])(?=\d)")  # 温度-5度, but not 5-10
_MARK: Final = "\x00"  # no text holds it once it is folded


def basic_rules(text: str, code: str) -> str:
    """Lower case without bracketed text; punctuation and symbols as spaces, but those that change what a number is."""
    text = _ENCLOSED.sub("", lower(fold(text, code), code))
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0].strip())
        return _MARK if match[3] else f" {_MARK} "

    if is_spaced(code):
        text = _BESIDE_NUMBER.sub(keep, text)
    else:
        text = _BESIDE_NUMBER_UNSPACED.sub(keep, "".join(text.split()))
    text = text.translate(PUNCTUATION)
    for symbol in kept:
        text = text.replace(_MARK, symbol, 1)
    return text
