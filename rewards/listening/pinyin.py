"""Toneless pinyin error: homophones are what a Chinese recogniser confuses, not what a synthesiser says wrong."""

from __future__ import annotations

from functools import lru_cache

from speech.edits import EditCounts, unit_edits, word_edits
from speech.runtime.importing import import_extra
from speech.text import language_code, scored_pair


@lru_cache(maxsize=65536)
def pinyin_edits(reference: str, hypothesis: str, language: str) -> EditCounts:
    """Edits in toneless syllables, as CosyVoice's recipe counts them (PAPER §5).

    Both texts are normalised first, so numbers are read out. Letters that are no Han characters count one by one. In
    languages other than Mandarin the counts are those of `word_edits`.

    Raises:
        UserError: pypinyin is not installed.
    """
    if language_code(language) != "zh":
        return word_edits(reference, hypothesis, language)
    first, second = scored_pair(reference, hypothesis, "zh")
    return unit_edits(_syllables(first), _syllables(second))


def _syllables(normalised: str) -> list[str]:
    pypinyin = import_extra("tts", "pypinyin", "pypinyin==0.55.0", "tts_accuracy with unit 'pinyin'")
    found: list[str] = pypinyin.lazy_pinyin(normalised, style=pypinyin.Style.NORMAL, errors=list)
    return found
