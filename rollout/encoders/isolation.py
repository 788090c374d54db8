"""Work on many utterances of which some may be bad: the others keep their results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from speech.errors import InputError, last_line
from speech.records import BadUtterance, Utterance

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolate(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], utterances: Sequence[Utterance]
) -> list[Result | BadUtterance]:
    """Results in order. When work on all items fails, each is tried by itself, so that only the bad ones are lost.

    Args:
        utterances: of each item.

    Raises:
        Exception: from `work`, when several items fail with errors that are not about their data, and none succeeds:
            then it is not their fault.
    """
    if len(items) > 1:
        try:
            return list(work(items))
        except Exception as error:  # noqa: BLE001 - raised again below where no item is to blame
            _make_room(error)
            logger.info("%d utterances are tried one by one: %s", len(items), reason_of(error))
    results: list[Result | BadUtterance] = []
    unexplained: list[Exception] = []
    for item, utterance in zip(items, utterances, strict=True):
        try:
            results.extend(work([item]))
        except Exception as error:
            _make_room(error)
            if not isinstance(error, InputError | OSError):
                logger.warning("utterance %s: %s", utterance.id, reason_of(error), exc_info=error)
                unexplained.append(error)
            results.append(BadUtterance(utterance.id, reason_of(error)))
    if len(unexplained) == len(items) > 1:
        raise unexplained[0]
    return results


def reason_of(error: Exception) -> str:
    """What is wrong, in a line."""
    if isinstance(error, InputError):
        return "; ".join(map(str, error.problems))
    return f"{type(error).__name__}: {last_line(error)}"


def _make_room(error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()  # what the failed batch had is still cached
