"""Quality: DNSMOS of the sample."""

from __future__ import annotations

from typing import Literal

from rewards.listening.group import Failure, SoundGroup
from rewards.registry import PartScore, on_sound, reward

_WORST = 1.0


@reward("quality")
@on_sound("quality")
def quality(
    group: SoundGroup, *, score: Literal["overall", "signal", "background", "p808"] = "overall"
) -> list[PartScore]:
    """(MOS − 1)/4 (GLM-TTS), clipped to [0, 1]; silence has the worst MOS, 1. All four scores are in the details."""
    return [_score(measured, score) for measured in group.qualities()]


def _score(measured: dict[str, float] | Failure | None, name: str) -> PartScore:
    if isinstance(measured, Failure):
        return PartScore(invalid=measured.reason)
    scores = {name: _WORST} if measured is None else measured
    return PartScore(value=min(max((scores[name] - 1.0) / 4.0, 0.0), 1.0), details=scores)
