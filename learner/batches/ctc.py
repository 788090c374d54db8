"""What CTC asks of a text. Pure: the controller counts with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def frames_needed(text_ids: Sequence[int]) -> int:
    """CTC frames without which a text is impossible: one for each label, and one more between equal ones."""
    return len(text_ids) + sum(a == b for a, b in pairwise(text_ids))
