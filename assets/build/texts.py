"""Which sentences are said where. No text occurs twice, neither in a part nor across parts.

Two domains: `general` has all templates of the grammar and sentences of random words; `household` has the templates
of a voice assistant at home, and is what the demo's reinforcement learning adapts the model to.
"""

from __future__ import annotations

import random
from functools import partial

from assets.build import grammar
from assets.build.grammar import Sentence

MANDARIN_SHARE = 0.08
GENERAL_SIZES = (2400, 1600, 600)
"""`sft`, texts for the tokenizer only, and a rest that nobody says: another sum would deal other texts to the first
two, and the tokenizer, with every model made by it, would change."""
PRETRAINING_SIZE = 10_000


def general(seed: int) -> list[list[Sentence]]:
    """The parts of GENERAL_SIZES."""
    return grammar.deal(list(GENERAL_SIZES), MANDARIN_SHARE, random.Random(seed))


def pretraining(seed: int) -> list[Sentence]:
    """General sentences for the encoder."""
    rng = random.Random(f"{seed} pretrain")
    known = {sentence.text for part in general(seed) for sentence in part}
    mandarin = grammar.distinct(round(PRETRAINING_SIZE * MANDARIN_SHARE), grammar.mandarin, rng)
    english = grammar.distinct(PRETRAINING_SIZE + len(known), grammar.english, rng)
    rng.shuffle(english)
    result = [sentence for sentence in mandarin if sentence.text not in known]
    result += [sentence for sentence in english if sentence.text not in known][: PRETRAINING_SIZE - len(result)]
    rng.shuffle(result)
    return result


def household(seed: int, sizes: list[int]) -> list[list[Sentence]]:
    """Sentences of the household domain, none of which the other functions return."""
    known = {sentence.text for part in [*general(seed), pretraining(seed)] for sentence in part}
    write = partial(grammar.english, templates=grammar.HOUSEHOLD_TEMPLATES, random_share=0.0)
    return grammar.deal(sizes, MANDARIN_SHARE, random.Random(f"{seed} household"), write, known)
