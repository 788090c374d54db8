"""Sampling a manifest with the engines: greedily or once at random, one response for each utterance."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

from cluster.actors.encoders import EncoderPool
from cluster.config import RunConfig
from cluster.data.prompts import derived_seed
from cluster.evaluation.result import CHUNK
from cluster.fleet.fleet import EngineFleet
from rollout.actors import EncodedRef
from rollout.config import SamplingConfig, room_complaint
from speech.errors import InputError, Problem
from speech.records import BadUtterance, Group, Prompt, Utterance

PROMPT = "evaluation/"
"""What the id of a prompt has before that of its utterance."""


def evaluation_sampling(config: RunConfig) -> SamplingConfig:
    """Greedy decoding with the evaluation's own budget of tokens."""
    greedy = config.sampling.greedy()
    budget = config.evaluation.max_new_tokens
    return greedy if budget is None else dataclasses.replace(greedy, max_new_tokens=budget)


def sample_once(config: RunConfig) -> SamplingConfig:
    """One sample per utterance at the training's temperature, with the evaluation's budget of tokens.

    Its seed derives from the utterance alone: evaluations before and after training draw with the same numbers.
    """
    return dataclasses.replace(evaluation_sampling(config), temperature=config.sampling.temperature)


class Stopwatch:
    """Adds up the wall time in which chunks are made, and not that in which they are scored."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, chunks: Iterator[list[Group]]) -> Iterator[list[Group]]:
        """The same chunks."""
        while True:
            start = time.perf_counter()
            groups = next(chunks, None)
            self.seconds += time.perf_counter() - start
            if groups is None:
                return
            yield groups


def sample_chunks(
    utterances: Sequence[Utterance],
    encoders: EncoderPool,
    fleet: EngineFleet,
    sampling: SamplingConfig,
    bad: list[BadUtterance],
) -> Iterator[list[Group]]:
    """Unscored groups of at most `CHUNK` utterances at a time, in their order.

    The seed of an utterance derives from its id alone, so that two evaluations draw with the same numbers.

    Args:
        bad: utterances that cannot be sampled are added to it.

    Raises:
        InputError: no utterance can.
    """
    for start in range(0, len(utterances), CHUNK):
        part = utterances[start : start + CHUNK]
        prompts = [
            Prompt(id=f"{PROMPT}{u.id}", utterance=u, epoch=0, position=start + i, seed=derived_seed("eval", u.id))
            for i, u in enumerate(part)
        ]
        usable: list[tuple[Prompt, EncodedRef]] = []
        for prompt, item in zip(prompts, encoders.encode(part, fleet.config.generate_timeout_s), strict=True):
            if isinstance(item, BadUtterance):
                bad.append(item)
                continue
            positions, limit = len(item.layout.token_ids), fleet.config.max_model_len
            complaint = room_complaint(positions, sampling.max_new_tokens, limit)
            if complaint is None:
                usable.append((prompt, item))
            else:
                bad.append(BadUtterance(prompt.utterance.id, f"{item.seconds:.1f} s: {complaint}"))
        sampled = fleet.generate([p for p, _ in usable], [item for _, item in usable], sampling, None) if usable else []
        bad += [item for item in sampled if isinstance(item, BadUtterance)]
        groups = [item for item in sampled if not isinstance(item, BadUtterance)]
        if groups:
            yield groups
    if len(bad) == len(utterances):
        raise bad_input(bad)


def bad_input(bad: Sequence[BadUtterance]) -> InputError:
    """The error about utterances that cannot be evaluated."""
    problems = [Problem(f"utterance {item.id}", None, None, item.reason) for item in bad]
    return InputError("utterances that cannot be evaluated", problems)
