"""Which samples DiffRO learns from.

A filter is one function of a sample; its name is the value of `learner.diffro.filter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learner.batches.batch import Sample, TrainGroup
from learner.batches.ctc import frames_needed
from speech.errors import UserError


def _positive(sample: Sample) -> bool:
    return sample.finished and sample.advantage > 0


def _all(sample: Sample) -> bool:
    return True


FILTERS: dict[str, Callable[[Sample], bool]] = {"positive": _positive, "none": _all}


def is_chosen(sample: Sample, name: str) -> bool:
    """Whether a sample enters the DiffRO loss.

    `positive` takes those better than their group (advantage > 0) that ended by themselves (2509.18569 §3): a rollout
    that repeats and never stops gives the reward model input it has never seen, and its gradient poisons the policy.
    `none` takes all. A response without a single speech token has nothing to differentiate and never enters.

    Raises:
        UserError: no filter of that name.
    """
    if name not in FILTERS:
        raise UserError(f"unknown sample filter {name!r}; known: {', '.join(sorted(FILTERS))}")
    return sample.speech_tokens > 0 and FILTERS[name](sample)


def chosen_labels(groups: Sequence[TrainGroup], name: str, labels_per_token: int) -> list[int]:
    """Number of text labels of each chosen sample, in order; 0 where the speech is too short for the text.

    Args:
        labels_per_token: CTC frames of the reward model per speech token.
    """
    return [
        len(group.text_ids) if frames_needed(group.text_ids) <= labels_per_token * sample.speech_tokens else 0
        for group in groups
        for sample in group.samples
        if is_chosen(sample, name)
    ]
