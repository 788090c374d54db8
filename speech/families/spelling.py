"""Which characters of a transcript each sampled token wrote."""

from __future__ import annotations

from collections.abc import Sequence

from speech.families.base import LanguageModelFamily

_PARTIAL = "\ufffd"
"""What a tokenizer writes for bytes that are no character yet."""


def token_spans(family: LanguageModelFamily, token_ids: Sequence[int], text: str) -> tuple[tuple[int, int], ...]:
    """The characters [start, end) of `text` that each token wrote.

    A token wrote what the response up to it says more than the response before it, by the family's own `parse_output`,
    so that nothing need be known of its tokenizer. A token that only begins a character (bytes of a Chinese one), or
    only adds space that is cut off, has the next character. Control tokens, stop tokens and what stands before the
    transcript (the language that a model claims) wrote nothing, and have an empty span.

    Returns:
        One span per token; empty when the tokens do not say `text`.
    """
    if family.parse_output(token_ids)[0] != text:
        return ()
    silent = {*family.control_tokens, *family.stop_token_ids}
    ends, begun = [], []
    for place in range(1, len(token_ids) + 1):
        said = family.parse_output(token_ids[:place])[0].rstrip(_PARTIAL).rstrip()
        begun.append(text.startswith(said))
        ends.append(_common(said, text))
    if ends:
        ends[-1] = len(text)
    for place in range(len(ends) - 1, 0, -1):  # what is taken back later was not the transcript
        ends[place - 1] = min(ends[place - 1], ends[place])
    spans = []
    for token, start, end, in_text in zip(token_ids, [0, *ends], ends, begun, strict=False):
        writes_none = token in silent or not in_text
        spans.append((start, end if end > start or writes_none else min(start + 1, len(text))))
    return tuple(spans)


def _common(one: str, other: str) -> int:
    """Characters at the beginning that are the same in both."""
    differs = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))
