"""Errors in case and punctuation, which the scored form of a text has no longer: WER_C, WER_PC and PER.

The figures of LibriSpeech-PC (Meister et al. 2023, arXiv 2310.02943): WER with case, WER with punctuation and case, and
the punctuation error rate. They are of the languages whose references have what is scored.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from speech.edits import EditCounts, TranscriptPair, aligned_units, scored_language, unit_edits
from speech.text import is_spaced
from speech.text.characters import fold, lower

SHARE = 0.5
"""References of a language have case (punctuation) when more of them than this share have it."""
_MARKS = {".": ".", "。": ".", "।": ".", "۔": ".", "።": ".", ",": ",", "、": ",", "،": ",", "?": "?", "؟": "?"}
"""Full stop, comma and question mark, which are those of the source, with their forms in other scripts."""
_MARK = re.compile(rf"((?<!\d)[{''.join(_MARKS)}]|[{''.join(_MARKS)}](?!\d))")  # 3.5 and 1,000 hold none
_MASK = "\0"


class WrittenRates(NamedTuple):
    """Corpus rates of text as it is written; None where no language's references have what is scored.

    Attributes:
        wer_c: WER with case, without punctuation.
        wer_pc: WER with case and punctuation, which is part of the word that it touches. Never below `wer_c`.
        per: (I + D + S) / (I + D + S + C) over full stops, commas and question marks.
    """

    wer_c: float | None = None
    wer_pc: float | None = None
    per: float | None = None


def written_rates(pairs: Iterable[TranscriptPair]) -> WrittenRates:
    """The rates of a corpus."""
    languages: dict[str, list[tuple[str, str]]] = {}
    for reference, hypothesis, language in pairs:
        code = scored_language(reference, hypothesis, language)
        languages.setdefault(code, []).append((fold(reference, code), fold(hypothesis, code)))
    case: list[EditCounts] = []
    both: list[EditCounts] = []
    marks: list[EditCounts] = []
    for code, texts in languages.items():
        references = [reference for reference, _ in texts if reference.strip()]
        letters = [r for r in references if any(c.isupper() or c.islower() for c in r)]
        cased = _share(letters, _has_case) > SHARE
        punctuated = _share(references, lambda r: _MARK.search(r) is not None) > SHARE
        spaced = is_spaced(code)
        if cased and spaced:
            case += [unit_edits(case_units(r), case_units(h)) for r, h in texts]
        if punctuated and spaced and (cased or not letters):
            both += [unit_edits(written_units(r), written_units(h)) for r, h in texts]
        if punctuated:
            marks += [punctuation_edits(r, h, code) for r, h in texts]
    punctuation = sum(marks, EditCounts())
    return WrittenRates(
        wer_c=sum(case, EditCounts()).rate if case else None,
        wer_pc=sum(both, EditCounts()).rate if both else None,
        per=punctuation.errors / (punctuation.errors + punctuation.hits) if marks else None,
    )


def _share(texts: Sequence[str], has: Callable[[str], bool]) -> float:
    return sum(map(has, texts)) / len(texts) if texts else 0.0


def _has_case(text: str) -> bool:
    """Capitals alone (LibriSpeech as it was first released) are no case."""
    return any(c.isupper() for c in text) and any(c.islower() for c in text)


def written_units(text: str) -> list[str]:
    """Words as they are written, with the punctuation that touches them; what stands alone belongs to the word before
    it, or to the first one."""
    units: list[str] = []
    waiting = ""
    for token in text.split():
        if any(c.isalnum() for c in token):
            units.append(waiting + token)
            waiting = ""
        elif units:
            units[-1] += token
        else:
            waiting += token
    return units


def case_units(text: str) -> list[str]:
    """The same words without punctuation and symbols, but for those inside a word."""
    return [_bare(unit) for unit in written_units(text)]


@lru_cache(maxsize=65536)
def _bare(unit: str) -> str:
    first, last = 0, len(unit)
    while first < last and unicodedata.category(unit[first])[0] in "PS":
        first += 1
    while last > first and unicodedata.category(unit[last - 1])[0] in "PS":
        last -= 1
    return unit[first:last]


def punctuation_edits(reference: str, hypothesis: str, code: str) -> EditCounts:
    """Edits of the three marks, whatever happens to the words between them.

    Words without case and marks are aligned together, all marks being alike: so a mark is compared with the mark at the
    same place among the words. A mark that aligns to a word, or to nothing, is deleted or inserted.

    Args:
        reference, hypothesis: folded (`speech.text.characters.fold`).
    """
    # From the end, as NeMo does it: of alignments with as few errors, the one in which the last marks are compared.
    first, second = (_with_marks(text, code)[::-1] for text in (reference, hypothesis))
    hits = substitutions = at_first = at_second = 0
    for part in aligned_units(*([_MASK if unit in _MARKS else unit for unit in side] for side in (first, second))):
        if part.kind == "equal":
            for place in range(len(part.reference)):
                one, other = first[at_first + place], second[at_second + place]
                hits += one in _MARKS and one == other
                substitutions += one != other
        at_first += len(part.reference)
        at_second += len(part.hypothesis)
    total, written = (sum(unit in _MARKS for unit in side) for side in (first, second))
    matched = hits + substitutions
    return EditCounts(hits, substitutions, deletions=total - matched, insertions=written - matched)


def _with_marks(text: str, code: str) -> list[str]:
    units: list[str] = []
    for place, piece in enumerate(_MARK.split(text)):
        if place % 2:
            units.append(_MARKS[piece])
        elif is_spaced(code):
            units += [lower(word, code) for word in map(_bare, piece.split()) if word]
        else:
            units += [character for character in piece if character.isalnum()]
    return units
