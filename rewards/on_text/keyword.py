"""R3, keywords: names and terms that must come out right (2509.18569: mean of keyword precision and recall)."""

from __future__ import annotations

from dataclasses import dataclass, field

from rewards.registry import PartScore, reward
from speech.edits import scored_language
from speech.records import Group
from speech.text import loose_units


@reward("keyword")
@dataclass(frozen=True)
class Keyword:
    """Mean of keyword precision and recall, in [0, 1].

    With K the utterance's keywords, V the vocabulary, n_r(k) and n_h(k) the occurrences of k in reference and
    hypothesis (normalised, numbers as digits), and n_r(k) at least 1 for k in K:

    - recall = Σ_K min(n_h, n_r) / Σ_K n_r
    - precision = Σ_{K∪V} min(n_h, n_r) / Σ_{K∪V} n_h, and 0 when no keyword was said although K is not empty.

    Without V, precision sees only keywords said too often; with V also those said in the wrong place. An utterance
    without keywords has value 1, or with a vocabulary the precision (1 when nothing of V was said). A value that is
    the same for all samples of a group leaves their advantages as they are.
    """

    vocabulary: tuple[str, ...] = field(
        default=(), metadata={"help": "all keywords of the task: saying one that the reference lacks costs precision"}
    )

    def __call__(self, group: Group) -> list[PartScore]:
        utterance = group.prompt.utterance
        hypotheses = [trajectory.text for trajectory in group.trajectories]
        return [self._score(utterance.text, text, utterance.keywords, utterance.language) for text in hypotheses]

    def _score(self, reference: str, hypothesis: str, keywords: tuple[str, ...], language: str | None) -> PartScore:
        code = scored_language(reference, hypothesis, language)
        spoken, heard = loose_units(reference, code), loose_units(hypothesis, code)
        required = {tuple(loose_units(keyword, code)) for keyword in keywords} - {()}
        known = required | ({tuple(loose_units(keyword, code)) for keyword in self.vocabulary} - {()})
        in_reference = {k: max(_occurrences(k, spoken), int(k in required)) for k in known}
        in_hypothesis = {k: _occurrences(k, heard) for k in known}
        right = {k: min(in_reference[k], in_hypothesis[k]) for k in known}
        said = sum(in_hypothesis.values())
        precision = sum(right.values()) / said if said else float(not required)
        if not required:
            return PartScore(value=precision, details={"precision": precision})
        recall = sum(right[k] for k in required) / sum(in_reference[k] for k in required)
        return PartScore(value=(precision + recall) / 2, details={"precision": precision, "recall": recall})


def _occurrences(phrase: tuple[str, ...], text: list[str]) -> int:
    size = len(phrase)
    return sum(tuple(text[i : i + size]) == phrase for i in range(len(text) - size + 1))
