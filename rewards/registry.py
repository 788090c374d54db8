"""Rewards by name, and the record that one reward returns for one sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints

from rewards.registries import REWARDS
from speech.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class PartScore:
    """What one reward says of one sample: a value, or why it has none.

    Attributes:
        value: finite number, higher is better; None when invalid.
        invalid: reason, e.g. `judge error: …`; None when there is a value.
        details: what the value was made of, for logs only.
    """

    value: float | None = None
    invalid: str | None = None
    details: Mapping[str, float] = field(default_factory=dict)

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
    factory = REWARDS.find(name)
    known = _options(name, factory)
    for option in options:
        if option not in known:
            raise UserError(f"reward {name!r} has no option {option!r}{did_you_mean(option, known)}")
    missing = [option for option, parameter in known.items() if parameter.default is parameter.empty]
    if absent := [option for option in missing if option not in options]:
        raise UserError(f"reward {name!r} needs the option {', '.join(map(repr, absent))}")
    hints = _type_hints(factory)
    values = {key: _checked(name, key, value, hints.get(key, Any)) for key, value in options.items()}
    if not inspect.isclass(factory):
        return partial(factory, **values)
    try:
        built: Any = factory(**values)
    except ValueError as error:
        raise UserError(f"reward {name!r}: {error}") from error
    if not callable(built):
        raise UserError(f"reward {name!r}: instances of {factory.__qualname__} cannot be called with a group")
    return cast(RewardFunction, built)


def _options(name: str, factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = list(inspect.signature(factory).parameters.values())
    if not inspect.isclass(factory):
        if not parameters:
            raise UserError(f"reward {name!r}: a reward function takes the group as its first argument")
        parameters = parameters[1:]
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _type_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    function: Any = factory.__dict__.get("__init__", factory) if inspect.isclass(factory) else factory
    try:
        return get_type_hints(function)
    except NameError:  # imported for type checkers only: a style, not a mistake, but then nothing can be checked
        return {}


def _checked(name: str, option: str, value: Any, hint: Any) -> Any:
    """The value, if it is of the declared type; YAML's integers pass for floats and its lists for tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            raise UserError(
                f"reward {name!r}: {option} is one of {known}, not {value!r}{did_you_mean(value, arguments)}"
            )
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"reward {name!r}: {option} is a number, not {value!r}")
        return float(value)
    elif origin is tuple and arguments[1:] == (...,):
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise UserError(f"reward {name!r}: {option} is a list, not {value!r}")
        return tuple(_checked(name, option, item, arguments[0]) for item in value)
    elif hint in (bool, int, str) and type(value) is not hint:
        raise UserError(f"reward {name!r}: {option} is of type {hint.__name__}, not {value!r}")
    return value
