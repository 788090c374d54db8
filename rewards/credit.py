"""Credit by word: which tokens of a transcript its errors belong to."""

from __future__ import annotations

from collections.abc import Sequence

from speech.edits import scored_language, unit_errors
from speech.records import Trajectory
from speech.text import is_spaced, scored_pair, unit_spans


def token_errors(
    reference: str, trajectory: Trajectory, language: str | None, by_character: bool
) -> list[float | None]:
    """The errors of a transcript, dealt out to the tokens that made them.

    A unit that is substituted or inserted is an error of the tokens that wrote it, in equal parts. A missing unit is an
    error of the unit that was written in its place, the next one; at the end, of the last token, which came too soon.

    Args:
        reference: raw text.
        trajectory: with `spans`.
        language: as `word_edits` takes it.
        by_character: units are characters even in languages with spaces (`character_edits`).

    Returns:
        Per token its errors, which add up to those of `word_edits` or `character_edits`; None of a token that wrote
        nothing that is scored, such as a blank or a filler, and is not the one that ended the transcript. Empty where
        it is not known which tokens wrote what.
    """
    if not trajectory.spans:
        return []
    code = scored_language(reference, trajectory.text, language)
    first, second = scored_pair(reference, trajectory.text, code)
    whole_words = is_spaced(code) and not by_character
    said, heard = (first.split(), second.split()) if whole_words else (list(first), list(second))
    places = unit_spans(trajectory.text, heard, code)
    if places is None:
        return []
    errors, missing = unit_errors(said, heard)
    found: list[float | None] = [None] * len(trajectory.token_ids)
    if missing or trajectory.finish_reason == "stop":
        found[-1] = float(missing)
    for (start, end), count in zip(places, errors, strict=True):
        writers = [token for token, (a, b) in enumerate(trajectory.spans) if max(a, start) < min(b, end)]
        if count and not writers:
            return []
        for token in writers:
            found[token] = (found[token] or 0.0) + count / len(writers)
    return found


def token_values(value: float, best: float, share: float, errors: Sequence[float | None]) -> tuple[float, ...]:
    """Values per token whose mean is `value`: what an error cost, `best` − `value`, falls on the tokens that made it.

    v_t = value + share · (best − value) · (1 − n · e_t / Σ e) for the n tokens that have a number of errors e_t. With
    `share` 1 one of these without error has `best`; with 0 all have `value`. Without errors all have `value`.

    A token that wrote nothing has `value` as well. Were it taken for right, a policy would learn to write nothing for
    ever: each such token would be better than its sentence, and the one at the end alone would bear what is missing.
    """
    known = [own for own in errors if own is not None]
    total = sum(known)
    if not total:
        return (value,) * len(errors)
    lost = share * (best - value)
    return tuple(value if own is None else value + lost * (1 - len(known) * own / total) for own in errors)
