"""Where the scored units of a text stand in the text as it was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from speech.text.languages import is_spaced
from speech.text.normalise import units
from speech.text.readings import ELSE

Span = tuple[int, int]
"""Characters [start, end) of a text."""


def unit_spans(text: str, scored: Sequence[str], code: str) -> list[Span] | None:
    """The characters of `text` behind each of its scored units.

    Normalisation works on whole texts ("twenty one" is `21`, "won't" is two units, "uh" is none). So the text is cut
    where it may be cut, that is where both sides are normalised to the same units alone as together, and a unit has the
    whole piece that it came from.

    Args:
        text: as written.
        scored: the second half of `scored_pair`, as words or as characters; the space between words has the next unit.
        code: language, as `language_code` gives it.

    Returns:
        A span per unit; None where a number stands in another reading than `units` gives it.
    """
    pieces = _pieces(text, code)
    owner = [span for span, found in pieces for _ in "".join(found)]
    spelled = [unit.removesuffix(ELSE).strip() for unit in scored]
    if "".join(spelled) != "".join(unit for _, found in pieces for unit in found):
        return None
    spans: list[Span] = []
    place = 0
    for unit, written in zip(spelled, scored, strict=True):
        first = place - 1 if written == ELSE else place  # the mark alone, among characters: of the one before it
        spans.append((owner[first][0], owner[max(first, place + len(unit) - 1)][1]))
        place += len(unit)
    return spans


def _pieces(text: str, code: str) -> list[tuple[Span, list[str]]]:
    """The smallest pieces that are normalised alone as they are in the text, with their units."""
    smallest = [match.span() for match in re.finditer(r"\S+" if is_spaced(code) else r"\S", text)]
    whole = units(text, code)
    alone = [units(text[start:end], code) for start, end in smallest]
    if [unit for found in alone for unit in found] == whole:
        return list(zip(smallest, alone, strict=True))
    cuts = [(0, 0)]
    for place in range(1, len(smallest)):
        start = smallest[place][0]
        before = units(text[:start], code)
        if len(before) >= cuts[-1][1] and before + units(text[start:], code) == whole:
            cuts.append((place, len(before)))
    cuts.append((len(smallest), len(whole)))
    return [
        ((smallest[first][0], smallest[last - 1][1]), whole[before:after])
        for (first, before), (last, after) in pairwise(cuts)
        if last > first
    ]
