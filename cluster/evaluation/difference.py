"""Two files of hypotheses, utterance by utterance: which utterances count, error rates by language, what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.evaluation.paired import Difference, paired_difference
from cluster.evaluation.sources import Hypothesis, Source
from speech.edits import (
    AlignedUnits,
    EditCounts,
    aligned_units,
    character_edits,
    scored_language,
    scored_units,
    word_edits,
)
from speech.errors import UserError, first_of
from speech.text import NORMALISER_VERSION, is_spaced, language_code

NAMED = 5
"""Ids that a warning names; the JSON has all of them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One utterance as A and as B have it; a failed sample is scored as silence.

    Attributes:
        language: code by which both are compared.
        words_a, words_b: edits in scoring units.
        characters_a, characters_b: edits in characters.
    """

    id: str
    language: str
    reference: str
    text_a: str
    text_b: str
    words_a: EditCounts
    words_b: EditCounts
    characters_a: EditCounts
    characters_b: EditCounts

    @property
    def more_errors(self) -> int:
        """Errors of B less those of A, in scoring units."""
        return self.words_b.errors - self.words_a.errors

    def alignments(self) -> tuple[list[AlignedUnits], list[AlignedUnits]]:
        """The alignments of A and of B with the reference, in scoring units."""
        first, second = (scored_units(self.reference, text, self.language) for text in (self.text_a, self.text_b))
        return aligned_units(*first), aligned_units(*second)

    def to_json(self) -> dict[str, Any]:
        a, b = ([part._asdict() for part in parts if part.kind != "equal"] for parts in self.alignments())
        return {
            "id": self.id,
            "language": self.language,
            "reference": self.reference,
            "a": {"hypothesis": self.text_a, "errors": self.words_a.errors, "edits": a},
            "b": {"hypothesis": self.text_b, "errors": self.words_b.errors, "edits": b},
            "more_errors": self.more_errors,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """Some utterances together.

    Attributes:
        wer, cer: in scoring units, and in characters.
        edits_a, edits_b: in scoring units.
    """

    utterances: int
    wer: Difference
    cer: Difference
    edits_a: EditCounts
    edits_b: EditCounts

    def to_json(self) -> dict[str, Any]:
        edits = {
            name: {"sub": e.substitutions, "del": e.deletions, "ins": e.insertions, "words": e.reference_length}
            for name, e in (("a", self.edits_a), ("b", self.edits_b))
        }
        return {"utterances": self.utterances, "wer": asdict(self.wer), "cer": asdict(self.cer), "edits": edits}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Utterances that are not compared, and samples that failed, by id.

    Attributes:
        only_a, only_b: in one of the files alone.
        other_reference: both have them, with another reference or language.
        unscored: nobody can score the reference.
        failed_a, failed_b: compared, as silence; reason by id.
    """

    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    other_reference: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)
    failed_a: dict[str, str] = field(default_factory=dict)
    failed_b: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comes of two files.

    Attributes:
        pairs: the utterances that are compared, by id.
        overall: of all of them.
        languages: by code.
        warnings: what makes the files unequal.
    """

    a: Source
    b: Source
    pairs: Sequence[Pair]
    overall: Row
    languages: Mapping[str, Row]
    left_out: LeftOut
    warnings: Sequence[str]

    def most_improved(self, number: int) -> list[Pair]:
        """Utterances on which B has fewer errors, by how many."""
        return sorted((p for p in self.pairs if p.more_errors < 0), key=lambda p: (p.more_errors, p.id))[:number]

    def most_worsened(self, number: int) -> list[Pair]:
        """Utterances on which B has more errors, by how many."""
        return sorted((p for p in self.pairs if p.more_errors > 0), key=lambda p: (-p.more_errors, p.id))[:number]

    def to_json(self, changed: int) -> dict[str, Any]:
        """Everything, with so many of the most improved and of the most worsened utterances."""
        return {
            "a": {"path": str(self.a.path), "normaliser": self.a.normaliser},
            "b": {"path": str(self.b.path), "normaliser": self.b.normaliser},
            "normaliser": NORMALISER_VERSION,
            **self.overall.to_json(),
            "worse": self.overall.wer.worse,
            "languages": {code: row.to_json() for code, row in self.languages.items()},
            "improved": sum(pair.more_errors < 0 for pair in self.pairs),
            "worsened": sum(pair.more_errors > 0 for pair in self.pairs),
            "most_improved": [pair.to_json() for pair in self.most_improved(changed)],
            "most_worsened": [pair.to_json() for pair in self.most_worsened(changed)],
            "left_out": asdict(self.left_out),
            "warnings": list(self.warnings),
        }


def compare(a: Source, b: Source) -> Comparison:
    """Score the utterances that both files have, both by the rules of now.

    Raises:
        UserError: no utterance can be compared.
    """
    out = LeftOut(
        only_a=sorted(a.hypotheses.keys() - b.hypotheses.keys()),
        only_b=sorted(b.hypotheses.keys() - a.hypotheses.keys()),
    )
    # In the order of their names: the draws of the bootstrap then do not depend on which file is A.
    pairs = [
        pair
        for name in sorted(a.hypotheses.keys() & b.hypotheses.keys())
        if (pair := _pair(name, a.hypotheses[name], b.hypotheses[name], out)) is not None
    ]
    if not pairs:
        why = "the same references" if out.other_reference else "an utterance in common"
        raise UserError(f"{a.path} and {b.path} cannot be compared: they do not have {why}")
    codes = sorted({pair.language for pair in pairs})
    rows = {code: _row([pair for pair in pairs if pair.language == code]) for code in codes}
    overall = rows[codes[0]] if len(codes) == 1 else _row(pairs)
    return Comparison(a, b, pairs, overall, rows, out, _warnings(a, b, out))


def _pair(name: str, a: Hypothesis, b: Hypothesis, out: LeftOut) -> Pair | None:
    """The utterance, or None after a note of why it does not count."""
    references = [item.reference for item in (a, b) if item.reference is not None]
    if not references:
        raise UserError(f"utterance {name!r}: neither file has its `reference`")
    languages = [item.language for item in (a, b) if item.language is not None]
    texts = [item.text or "" for item in (a, b)]
    code = scored_language(min(references), " ".join(texts), languages[0] if languages else None)
    if len({language_code(language) for language in languages}) > 1 or not _same(references, code):
        out.other_reference.append(name)
        return None
    if not (a.scored and b.scored):
        out.unscored.append(name)
        return None
    for item, failed in ((a, out.failed_a), (b, out.failed_b)):
        if item.text is None:
            failed[name] = item.problem
    reference = min(references)
    first, second = texts
    return Pair(
        id=name,
        language=code,
        reference=reference,
        text_a=first,
        text_b=second,
        words_a=word_edits(reference, first, code),
        words_b=word_edits(reference, second, code),
        characters_a=character_edits(reference, first, code),
        characters_b=character_edits(reference, second, code),
    )


def _same(references: Sequence[str], code: str) -> bool:
    """Whether they are one reference, but for how it is written."""
    first, last = references[0], references[-1]
    return first == last or word_edits(first, last, code).errors == word_edits(last, first, code).errors == 0


def _row(pairs: Sequence[Pair]) -> Row:
    a, b = [pair.words_a for pair in pairs], [pair.words_b for pair in pairs]
    wer = paired_difference(a, b)
    spaced = any(is_spaced(pair.language) for pair in pairs)
    characters = ([pair.characters_a for pair in pairs], [pair.characters_b for pair in pairs])
    return Row(
        utterances=len(pairs),
        wer=wer,
        cer=paired_difference(*characters) if spaced else wer,
        edits_a=sum(a, EditCounts()),
        edits_b=sum(b, EditCounts()),
    )


def _warnings(a: Source, b: Source, out: LeftOut) -> list[str]:
    found = []
    made_by = {s.path: s.normaliser for s in (a, b) if s.normaliser not in (None, NORMALISER_VERSION)}
    for version in dict.fromkeys(made_by.values()):
        files = " and ".join(str(path) for path, its in made_by.items() if its == version)
        found.append(
            f"{files}: their own figures are by other rules of text ({version}); here both files are scored anew"
        )
    if a.speaks != b.speaks:
        found.append("one file is of a model that speaks, as its judge heard it, and the other of a model that hears")
    for names, what in (
        (out.only_a, f"only in {a.path}"),
        (out.only_b, f"only in {b.path}"),
        (out.other_reference, "left out, their references or languages differ"),
        (out.unscored, "left out, their references hold nothing that can be scored"),
        (out.failed_a, f"failed in {a.path} and count as silence"),
        (out.failed_b, f"failed in {b.path} and count as silence"),
    ):
        if names:
            found.append(f"{len(names):,} utterances {what}: {_first(names)}")
    return found


def _first(names: Iterable[str]) -> str:
    return first_of(names, NAMED)
