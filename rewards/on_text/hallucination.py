"""R2, hallucination: output that is not in the audio (2509.18569: repetition, invented content, translation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rewards.registry import PartScore, reward
from speech.edits import scored_language, word_edits
from speech.records import Group, Trajectory
from speech.text import allowed_scripts, is_spaced, loose_units, normalise, script_shares, units


@reward("hallucination")
@dataclass(frozen=True)
class Hallucination:
    """−1 when any enabled rule fires, else 0; which rule fired is in the details (1 or 0 each).

    No rule but `silence` can fire on a hypothesis that equals its reference.
    """

    loop: bool = field(default=True, metadata={"help": "a phrase (or letters in a word) repeated on and on"})
    loop_repeats: int = field(default=4, metadata={"help": "consecutive repeats of 1 to loop_phrase units that fire"})
    loop_repeats_truncated: int = field(default=3, metadata={"help": "the same for samples that ran out of tokens"})
    loop_phrase: int = field(default=8, metadata={"help": "longest phrase looked for, in scoring units"})
    loop_letters: int = field(default=6, metadata={"help": "consecutive repeats of 1 to 4 letters inside a word"})
    insertion: bool = field(default=True, metadata={"help": "a burst of units that the reference does not have"})
    insertion_run: int = field(default=5, metadata={"help": "consecutive inserted units that fire"})
    insertion_share: float = field(default=0.5, metadata={"help": "insertions per reference unit above which it fires"})
    insertion_least: int = field(default=3, metadata={"help": "fewer insertions than this never fire by their share"})
    silence: bool = field(default=True, metadata={"help": "any output on silent audio or on an empty reference"})
    silence_peak: float = field(default=0.001, metadata={"help": "audio whose largest sample is below it is silent"})
    script: bool = field(default=True, metadata={"help": "another script than the language's, e.g. a translation"})
    script_share: float = field(
        default=0.5, metadata={"help": "share of foreign script, above the reference's own share, that fires"}
    )

    def __post_init__(self) -> None:
        for name in ("loop_repeats", "loop_repeats_truncated", "loop_letters"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is at least 2, not {getattr(self, name)}")
        for name in ("loop_phrase", "insertion_run", "insertion_least"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.insertion_share < 0 or not 0 <= self.script_share < 1 or not 0 <= self.silence_peak <= 1:
            raise ValueError("insertion_share is at least 0, script_share in [0, 1), silence_peak in [0, 1]")

    def __call__(self, group: Group) -> list[PartScore]:
        return [self._score(group, trajectory) for trajectory in group.trajectories]

    def _score(self, group: Group, trajectory: Trajectory) -> PartScore:
        reference, language = group.prompt.utterance.text, group.prompt.utterance.language
        code = scored_language(reference, trajectory.text, language)
        fired = {}
        if self.loop:
            repeats = self.loop_repeats_truncated if trajectory.finish_reason == "length" else self.loop_repeats
            fired["loop"] = self.loops(reference, trajectory.text, code, repeats)
        if self.insertion:
            fired["insertion"] = self._bursts(reference, trajectory.text, code)
        if self.silence:
            silent = group.peak < self.silence_peak or not normalise(reference, code)
            fired["silence"] = silent and any(character.isalnum() for character in trajectory.text)
        if self.script:
            fired["script"] = self._foreign(reference, trajectory.text, language)
        return PartScore(
            value=-1.0 if any(fired.values()) else 0.0, details={rule: float(hit) for rule, hit in fired.items()}
        )

    def loops(self, reference: str, hypothesis: str, language: str, repeats: int) -> bool:
        """Whether the hypothesis repeats something so often on and on, and the reference does not."""
        # Normalised text alone misleads both ways: "five million" becomes 5000000, six zeros in a row, and a loop of
        # "uh" is dropped as filler. So a phrase must repeat as written, and either normalise to nothing or repeat
        # once normalised too, where "one one one" and the reference's "111" are the same.
        phrase = _loop(_written(hypothesis, language), _written(reference, language), self.loop_phrase, repeats)
        if phrase is not None:
            heard, spoken = loose_units(hypothesis, language), loose_units(reference, language)
            looped = _loop(heard, spoken, self.loop_phrase, repeats) is not None
            if looped or not normalise(" ".join(phrase), language):
                return True
        # A subword model may loop without ever leaving the word: "hahahahahaha". Zeros repeat by right.
        spoken_letters = "".join(units(reference, language)).replace("0", "")
        letters = [unit.replace("0", "") for unit in units(hypothesis, language)]
        return any(_loop(word, spoken_letters, 4, self.loop_letters) is not None for word in letters)

    def _bursts(self, reference: str, hypothesis: str, language: str) -> bool:
        counts = word_edits(reference, hypothesis, language)
        if counts.reference_length == 0:  # that is the rule `silence`, which is switched on its own
            return False
        by_share = counts.insertions >= self.insertion_least
        by_share = by_share and counts.insertions > self.insertion_share * counts.reference_length
        return by_share or counts.longest_insertion >= self.insertion_run

    def _foreign(self, reference: str, hypothesis: str, language: str | None) -> bool:
        allowed = allowed_scripts(reference, language)
        if not allowed:
            return False
        return _share_outside(hypothesis, allowed) - _share_outside(reference, allowed) > self.script_share


def _share_outside(text: str, allowed: frozenset[str]) -> float:
    return sum(share for script, share in script_shares(text).items() if script not in allowed)


def _written(text: str, language: str) -> list[str]:
    """Words as written, without case and punctuation; characters in languages without spaces."""
    if not is_spaced(language):
        return loose_units(text, language)
    words = ("".join(c for c in word if c.isalnum() or c in "[]()<>") for word in text.lower().split())
    return [word for word in words if word]


def _loop(hypothesis: Sequence[str], reference: Sequence[str], longest: int, least: int) -> tuple[str, ...] | None:
    """A phrase of 1 to `longest` items that occurs `least` times in a row in the hypothesis, and `least` − 1 times
    more in a row than in the reference ("no no no" may be heard as "no no no no"); None when there is none."""
    in_reference: dict[tuple[str, ...], int] = {}  # a long loop asks for the same phrase at each of its positions
    for size in range(1, min(longest, len(hypothesis) // least) + 1):
        run = 0  # consecutive positions that equal the one `size` before them
        for place in range(size, len(hypothesis)):
            run = run + 1 if hypothesis[place] == hypothesis[place - size] else 0
            times = run // size + 1
            if times < least:
                continue
            phrase = tuple(hypothesis[place - size + 1 : place + 1])
            if phrase not in in_reference:
                in_reference[phrase] = _most_in_a_row(reference, phrase)
            if times - in_reference[phrase] >= least - 1:
                return phrase
    return None


def _most_in_a_row(items: Sequence[str], phrase: tuple[str, ...]) -> int:
    """Most consecutive occurrences of a phrase at any rotation: "a b a b" holds "b a" as often as "a b"."""
    size, run, best = len(phrase), 0, 0
    rotations = {phrase[i:] + phrase[:i] for i in range(size)}
    for place in range(len(items)):
        run = run + 1 if place >= size and items[place] == items[place - size] else 0
        if tuple(items[max(place - size + 1, 0) : place + 1]) in rotations:
            best = max(best, run // size + 1)
    return best
