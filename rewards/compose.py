"""Composition: the weighted sum of named rewards over one group. Fails closed."""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from collections.abc import Sequence

from rewards.config import RewardConfig
from rewards.listening.group import SoundGroup
from rewards.listening.judge import JudgeLostError
from rewards.registry import Need, PartScore, RewardFunction, build_reward, part_name, sound_needs
from speech.errors import UserError
from speech.records import Group, Reward

logger = logging.getLogger(__name__)

_FLAT = 1e-8  # a part whose spread in its group is below this has no order to keep; its z-scores are 0


class RewardComposition:
    """Scores a group by several rewards: total = Σ weight · part (each reward of the papers is such a sum).

    With `normalise_parts` each part is first brought to zero mean and unit (population) deviation over the valid
    samples of its group, as GLM-TTS does; a part without spread becomes 0.

    A sample is *invalid* when any of its parts is: the reward raised, returned no finite number, or said so itself.
    It then has no total, and takes no part in the normalisation.

    Attributes:
        on_sound: names of the parts that score sound.
        needs: models that they ask for.
        needs_spans: whether a part asks which characters each token wrote (`Trajectory.spans`).

    Raises:
        UserError: unknown reward or option, a part named twice, a weight that is no finite number, no reward at all.
    """

    def __init__(self, config: RewardConfig) -> None:
        if not config.items:
            raise UserError("rewards.items is empty: name at least one reward, such as accuracy")
        self._normalise_parts = config.normalise_parts
        self._parts: dict[str, tuple[float, RewardFunction]] = {}
        self.on_sound: set[str] = set()
        self.needs: set[Need] = set()
        self.needs_spans = False
        for item in config.items:
            name = part_name(item.name)
            if name in self._parts:
                raise UserError(f"rewards.items names {name!r} twice: its values could not be told apart")
            if not math.isfinite(item.weight):
                raise UserError(f"rewards.items: the weight of {name!r} is {item.weight}, not a finite number")
            function = build_reward(item.name, item.options)
            self._parts[name] = (float(item.weight), function)
            self.needs_spans |= bool(getattr(function, "needs_spans", False))
            if (needs := sound_needs(item.name)) is not None:
                self.on_sound.add(name)
                self.needs |= needs

    def score(self, group: Group, sound: SoundGroup | None = None) -> Group:
        """The group with one reward per trajectory, in order. Never raises on behalf of a reward.

        Args:
            sound: the group as sound, for the parts that score it; without it they are errors, their samples invalid.
        """
        scores = {
            name: _call(name, function, group, sound if name in self.on_sound else group)
            for name, (_, function) in self._parts.items()
        }
        reasons = [_first_reason(scores, index) for index in range(len(group.trajectories))]
        totals, credit = self._totals(scores, reasons)
        rewards = tuple(
            Reward(
                total=totals[index],
                parts={name: value for name, part in scores.items() if (value := part[index].value) is not None},
                details={
                    f"{name}/{key}": value
                    for name, part in scores.items()
                    for key, value in part[index].details.items()
                },
                invalid=reasons[index],
                token_credit=credit[index],
            )
            for index in range(len(group.trajectories))
        )
        return dataclasses.replace(group, rewards=rewards)

    def _totals(
        self, scores: dict[str, Sequence[PartScore]], reasons: Sequence[str | None]
    ) -> tuple[list[float | None], list[tuple[float, ...]]]:
        """Of each sample the total, and by how much each of its tokens differs from it."""
        valid = [index for index, reason in enumerate(reasons) if reason is None]
        totals: list[float | None] = [None] * len(reasons)
        credit: list[tuple[float, ...]] = [()] * len(reasons)
        for name, (weight, _) in self._parts.items():
            values = [value for index in valid if (value := scores[name][index].value) is not None]
            factor = weight
            if self._normalise_parts:
                values, spread = _z_scores(values)
                factor = weight / spread if spread else 0.0
            for index, value in zip(valid, values, strict=True):
                totals[index] = (totals[index] or 0.0) + weight * value
                credit[index] = _added(credit[index], scores[name][index].tokens, factor)
        return totals, credit


def _added(credit: tuple[float, ...], tokens: Sequence[float], factor: float) -> tuple[float, ...]:
    """The credit of a sample's tokens with that of one more part; a part without adds none."""
    if not tokens or not factor:
        return credit
    mean = statistics.fmean(tokens)
    return tuple(
        before + factor * (value - mean) for before, value in zip(credit or (0.0,) * len(tokens), tokens, strict=True)
    )


def _call(
    name: str, function: RewardFunction, group: Group, argument: Group | SoundGroup | None
) -> Sequence[PartScore]:
    """The part's scores; whatever goes wrong becomes a reason on every sample that it concerns."""
    size = len(group.trajectories)
    try:
        if argument is None:
            raise ValueError("it scores sound, and this group was not decoded")
        scores = [_finite(name, score) for score in function(argument)]
        if len(scores) != size:
            raise ValueError(f"{len(scores)} scores for {size} samples")
        for score, trajectory in zip(scores, group.trajectories, strict=True):
            if score.tokens and len(score.tokens) != len(trajectory.token_ids):
                raise ValueError(f"{len(score.tokens)} values for {len(trajectory.token_ids)} tokens")
    except JudgeLostError:  # of no sample: the process is to be replaced, and its groups tried again
        raise
    except Exception as error:
        logger.exception("reward %r failed on %s", name, group.prompt.id)
        return [PartScore(invalid=f"{name}: {type(error).__name__}: {error}")] * size
    return scores


def _finite(name: str, score: PartScore) -> PartScore:
    if not isinstance(score, PartScore):  # a user's function may return anything
        raise TypeError(f"a reward returns PartScores, not {type(score).__name__}")
    details = {key: float(value) for key, value in score.details.items()}
    if score.value is None:
        return PartScore(invalid=f"{name}: {score.invalid}", details=details)
    value, tokens = float(score.value), tuple(map(float, score.tokens))
    for number in (value, *tokens):
        if not math.isfinite(number):
            return PartScore(invalid=f"{name}: not a finite number: {number}", details=details)
    return PartScore(value=value, details=details, tokens=tokens)


def _first_reason(scores: dict[str, Sequence[PartScore]], index: int) -> str | None:
    return next((reason for part in scores.values() if (reason := part[index].invalid) is not None), None)


def _z_scores(values: Sequence[float]) -> tuple[list[float], float]:
    """The values with mean 0 and deviation 1, and the deviation that they had; both 0 where they are all the same."""
    if not values:
        return [], 0.0
    mean = statistics.fmean(values)
    spread = statistics.pstdev(values, mean)
    if spread < _FLAT:
        return [0.0] * len(values), 0.0
    return [(value - mean) / spread for value in values], spread
