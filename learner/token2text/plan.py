"""What a Token2Text model trains on, and how a step of it is divided into ranks. Pure; runs on the controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from learner.batches.ctc import frames_needed


@dataclass(frozen=True, slots=True)
class SpeechText:
    """An utterance as speech tokens, with what should be read out of it.

    Attributes:
        tokens: codec ids, at least one.
        text_ids: labels of the text (`Token2TextConfig.text_ids`).
        attributes: class of each attribute (`Token2TextConfig.attribute_ids`).
    """

    tokens: tuple[int, ...]
    text_ids: tuple[int, ...]
    attributes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens or not self.text_ids:
            raise ValueError("an utterance to train on needs speech tokens and a text")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model reads in an utterance.

    Attributes:
        nll: −log P(text), in nats; infinite where the text does not fit into the frames.
        labels: the greedy CTC prediction.
        attributes: likeliest class of each attribute.
    """

    nll: float
    labels: tuple[int, ...]
    attributes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MixedItem:
    """An utterance, and the one that mixup lays over it.

    Attributes:
        share: of `item`, in embeddings and in the loss; 1 leaves the partner out.
    """

    item: SpeechText
    partner: SpeechText
    share: float

    @property
    def length(self) -> int:
        return max(len(self.item.tokens), len(self.partner.tokens) if self.share < 1 else 0)

    def labels(self, labels_per_token: int) -> float:
        """Labels of the texts that fit into the frames, weighted as their losses are."""
        frames = labels_per_token * self.length
        own, other = (
            len(text) if frames_needed(text) <= frames else 0 for text in (self.item.text_ids, self.partner.text_ids)
        )
        return self.share * own + (1 - self.share) * other


@dataclass(frozen=True, slots=True)
class Token2TextShare:
    """One optimiser update as one rank sees it.

    Attributes:
        items: this rank's part; possibly empty.
        labels, samples: counts over all ranks, which normalise the losses; a text that does not fit into its frames has
            no likelihood, and no labels here.
        dummy: what a rank with fewer micro-batches computes with weight 0.
    """

    items: tuple[MixedItem, ...]
    labels: float
    samples: int
    dummy: MixedItem


def plan_token2text(
    items: Sequence[SpeechText],
    ranks: int,
    mixup: float,
    seed: int,
    step: int,
    noise: float = 0.0,
    labels_per_token: int = 1,
) -> list[Token2TextShare]:
    """Divide a step's utterances among ranks, longest first in turn, each with its partner.

    Partners, shares and noise are drawn here, from the seed and the step, so that they depend on neither ranks nor
    micro-batches.

    Args:
        mixup: α of Beta(α, α); 0 leaves every utterance alone.
        noise: share of speech tokens that others of this step's utterances take the place of.
        labels_per_token: the model's frames per speech token.

    Raises:
        ValueError: there is nothing to train on.
    """
    if not items:
        raise ValueError("a step of Token2Text training needs at least one utterance")
    generator = np.random.default_rng([seed, step])
    if noise > 0:
        items = _noisy(items, noise, generator)
    partners = generator.permutation(len(items))
    shares = generator.beta(mixup, mixup, len(items)) if mixup > 0 else np.ones(len(items))
    # Mixtures are symmetric: the larger share is called the item's own, so that metrics are of what is mostly heard.
    shares = np.maximum(shares, 1 - shares)
    mixed = [MixedItem(item, items[p], float(s)) for item, p, s in zip(items, partners, shares, strict=True)]
    labels = sum(item.labels(labels_per_token) for item in mixed)
    order = sorted(mixed, key=lambda item: -item.length)
    return [Token2TextShare(tuple(order[rank::ranks]), labels, len(items), order[-1]) for rank in range(ranks)]


def _noisy(items: Sequence[SpeechText], noise: float, generator: np.random.Generator) -> list[SpeechText]:
    """Copies with tokens replaced; frequent tokens come often, as they would in a policy's errors."""
    pool = np.concatenate([item.tokens for item in items])
    found = []
    for item in items:
        hit = generator.random(len(item.tokens)) < noise
        others = pool[generator.integers(len(pool), size=len(item.tokens))]
        tokens = np.where(hit, others, item.tokens)
        found.append(replace(item, tokens=tuple(tokens.tolist())))
    return found


def plan_predictions(items: Sequence[SpeechText], ranks: int) -> list[list[int]]:
    """Which utterances each rank reads, by index, longest first."""
    order = sorted(range(len(items)), key=lambda i: -len(items[i].tokens))
    return [order[rank::ranks] for rank in range(ranks)]


def split_items(items: Sequence[MixedItem], token_budget: int) -> list[list[MixedItem]]:
    """Cut a rank's utterances, longest first, into micro-batches of at most `token_budget` padded tokens each.

    One that is longer than the budget is a micro-batch of its own.
    """
    batches: list[list[MixedItem]] = []
    for item in items:
        if batches and (len(batches[-1]) + 1) * batches[-1][0].length <= token_budget:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches
