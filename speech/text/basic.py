"""All other languages as they are scored: Whisper's basic rules, with marks, and with the symbols beside numbers."""

from __future__ import annotations

import re
from typing import Final

from speech.text.characters import Spaced, fold, lower
from speech.text.languages import is_spaced

_ENCLOSED: Final = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")
_SYMBOL: Final = re.compile(r"[%$€£¥₩₹°+-]")
_CURRENCIES: Final = "%$€£¥₩₹°"
_SIGNS: Final = "+-"
_SPACED: Final = Spaced("PS", keep=_CURRENCIES + _SIGNS)


def basic_rules(text: str, code: str) -> str:
    """Lower case without bracketed text; punctuation and symbols as spaces, but those that change what a number is."""
    text = _ENCLOSED.sub("", lower(fold(text, code), code)).translate(_SPACED)
    if not is_spaced(code):
        text = "".join(text.split())
    return _only_beside_numbers(text, is_spaced(code)) if _SYMBOL.search(text) else text


def _only_beside_numbers(text: str, spaced: bool) -> str:
    """Currencies, percent and degrees before or after a number, and signs before one that no word touches (without
    spaces: no digit or Latin letter, so 温度-5度 but not 5-10); spaces for all others."""
    kept = ""
    start = 0
    for match in _SYMBOL.finditer(text):
        kept += text[start : match.start()]
        start, symbol, last = match.end(), match[0], kept.rstrip()[-1:]
        if symbol in _SIGNS:
            touched = not kept[-1:].isspace() and kept != "" if spaced else last.isascii() and last.isalnum()
            beside = not touched and text[start : start + 1].isdecimal()
        else:
            beside = last.isdecimal() or (symbol != "°" and text[start:].lstrip()[:1].isdecimal())
            symbol = f" {symbol} "
        kept += symbol if beside else " " if spaced else ""
    return kept + text[start:]
