"""Credit by word: which tokens of a transcript its errors belong to."""

from __future__ import annotations

from speech.edits import scored_language, unit_errors
from speech.records import Trajectory
from speech.text import is_spaced, scored_pair, unit_spans


def token_errors(reference: str, trajectory: Trajectory, language: str | None, by_character: bool) -> list[float]:
    """The errors of a transcript, dealt out to the tokens that made them.

    A unit that is substituted or inserted is an error of the tokens that wrote it, in equal parts. A missing unit is an
    error of the unit that was written in its place, the next one; at the end, of the last token, which came too soon.

    Args:
        reference: raw text.
        trajectory: with `spans`.
        language: as `word_edits` takes it.
        by_character: units are characters even in languages with spaces (`character_edits`).

    Returns:
        Per token its errors; they add up to those of `word_edits` or `character_edits`. Empty where it is not known
        which tokens wrote what.
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
    found = [0.0] * len(trajectory.token_ids)
    found[-1] += missing
    for (start, end), count in zip(places, errors, strict=True):
        if count:
            writers = [token for token, (a, b) in enumerate(trajectory.spans) if max(a, start) < min(b, end)]
            if not writers:
                return []
            for token in writers:
                found[token] += count / len(writers)
    return found


def token_values(value: float, best: float, share: float, errors: list[float]) -> tuple[float, ...]:
    """Values per token whose mean is `value`: what an error cost, `best` − `value`, falls on the tokens that made it.

    v_t = value + share · (best − value) · (1 − n · e_t / Σ e) for n tokens with errors e_t. With `share` 1 a token
    without error has `best`; with 0 all have `value`. Without errors all have `value`.
    """
    total = sum(errors)
    if not total:
        return (value,) * len(errors)
    lost = share * (best - value)
    return tuple(value + lost * (1 - len(errors) * own / total) for own in errors)
