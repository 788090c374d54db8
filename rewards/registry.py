"""Rewards by name, and the record that one reward returns for one sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, cast, get_type_hints

from rewards.registries import REWARDS
from speech.errors import UserError, did_you_mean
from speech.runtime.schema import Problems, bind_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class PartScore:
    """What one reward says of one sample: a value, or why it has none.

    Attributes:
        value: finite number, higher is better; None when invalid.
        invalid: reason, e.g. `judge error: …`; None when there is a value.
        details: what the value was made of, for logs only.
        tokens: a value for each token of the response, for credit within it. Only by how much they differ from their
            mean counts; empty gives all tokens the same.
    """

    value: float | None = None
    invalid: str | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    tokens: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.value is None) != (self.invalid is not None):
            raise ValueError("a part score has either a value or a reason for being invalid")


Need = Literal["judge", "speaker", "pitch", "quality"]
"""What a reward on sound may ask for beyond the waveform: a model of `rewards.models`."""


class RewardFunction(Protocol):
    """A reward sees a whole group, so that it may compare samples; it returns one score per trajectory, in order.

    A reward marked `on_sound` is given a `SoundGroup`, any other a `Group`.
    """

    def __call__(self, group: Any, /) -> Sequence[PartScore]: ...


_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def reward(name: str) -> Callable[[_Factory], _Factory]:
    """Register a reward: a class whose instances are `RewardFunction`s and whose constructor takes the options, or
    a function `(group, *, option=default, …)`. It stands in the module of its name in `on_text/` or `on_sound/`."""
    return REWARDS.register(name)


def on_sound(*needs: Need) -> Callable[[_Factory], _Factory]:
    """Mark a reward that scores sound: it is called with a `SoundGroup` (`rewards.listening.group`) and no `Group`.

    Args:
        needs: models that it asks its sounds for; they are checked with the configuration and loaded beforehand.
    """

    def mark(factory: _Factory) -> _Factory:
        factory.sound_needs = frozenset(needs)  # type: ignore[attr-defined]
        return factory

    return mark


def sound_needs(name: str) -> frozenset[Need] | None:
    """What a reward on sound needs; None for a reward that scores records alone.

    Raises:
        UserError: no such reward.
    """
    needs: frozenset[Need] | None = getattr(REWARDS.find(name), "sound_needs", None)
    return needs


def part_name(name: str) -> str:
    """The name under which a reward's values appear in logs: for `module:function` the function's."""
    return name.rpartition(":")[2]


def build_reward(name: str, options: Mapping[str, Any]) -> RewardFunction:
    """The reward that a configuration asks for.

    Args:
        name: a registered name, or `module:function` (or `module:Class`) for the user's own.
        options: keyword arguments for its constructor or function.

    Raises:
        UserError: unknown name, module or option (with the nearest known one), or a value of a wrong type or range.
    """
    function, problems = _build(name, options)
    if function is None:
        raise UserError(
            "; ".join(f"reward {name!r}: {f'{option}: ' * bool(option)}{text}" for option, text in problems)
        )
    return function


def reward_problems(name: str, options: Mapping[str, Any]) -> Problems:
    """What `build_reward` would raise, as (option, message); without an option what is wrong with the reward itself."""
    try:
        return _build(name, options)[1]
    except UserError as error:
        return [("", str(error))]


def _build(name: str, options: Mapping[str, Any]) -> tuple[RewardFunction | None, Problems]:
    factory = REWARDS.find(name)
    parameters = list(inspect.signature(factory).parameters.values())
    if not inspect.isclass(factory):
        if not parameters:
            return None, [("", "a reward function takes the group as its first argument")]
        parameters = parameters[1:]
    hints = _type_hints(factory)
    known = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    kinds = {p.name: hints.get(p.name, Any) for p in known}
    required = [p.name for p in known if p.default is p.empty]
    values, problems = bind_keys(kinds, required, options, lambda option: did_you_mean(option, kinds))
    if problems:
        return None, problems
    if not inspect.isclass(factory):
        return partial(factory, **values), []
    try:
        built: Any = factory(**values)
    except ValueError as error:
        return None, [("", str(error))]
    if not callable(built):
        return None, [("", f"instances of {factory.__qualname__} cannot be called with a group")]
    return cast(RewardFunction, built), []


def _type_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    function: Any = factory.__dict__.get("__init__", factory) if inspect.isclass(factory) else factory
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:  # imported for type checkers only: a style, not a mistake, but then nothing can be checked
        return {}
